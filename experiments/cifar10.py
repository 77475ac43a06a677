"""ResNet-20 on CIFAR-10; `cifar10.py:resnet56` and so on for its siblings, `:resnet18` … with a 3x3 stem.

He et al. 2016, Deep residual learning, section 4.2: Nesterov-free SGD, weight decay 1e-4 on everything; here Nesterov,
decay of kernels only, 5e-4, and a cosine.
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
