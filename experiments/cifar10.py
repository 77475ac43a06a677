"""ResNet-20 on CIFAR-10; `cifar10.py:resnet56` and so on for its siblings, `:resnet18` and so on with a 3x3 stem.

He et al. 2016, Deep residual learning, section 4.2, which decays every weight by 1e-4 and drops the rate twice; here
Nesterov momentum, 5e-4 on kernels only, and a cosine.

    python -m jaxcnn.main --config experiments/cifar10.py

The 60 epochs are not run by us yet; 3 alone (`--config.num_epochs=3`) reach 74.1 % (n = 1) in 10 to 14 minutes on 2
loaded CPU cores.
"""

from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_config(model: str = "resnet20") -> Config:
    return Config(
        num_epochs=60,
        batch_size=128,
        log_every_steps=100,
        data=DataConfig(name="tfds:cifar10"),
        augment=AugmentConfig(flip=True, crop_padding=4),
        model=ModelConfig(name=model),
        optimizer=OptimizerConfig(name="nesterov", learning_rate=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=2),
    )
