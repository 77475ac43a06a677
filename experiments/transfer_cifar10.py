"""Transfer within CIFAR-10: ResNet-20 learns five classes, then the other five from 50 images each.

    python -m jaxcnn.main --config experiments/transfer_cifar10.py:pretrain
    python -m jaxcnn.main --config experiments/transfer_cifar10.py
    python -m jaxcnn.transfer probe --config experiments/transfer_cifar10.py

`:scratch` begins from nothing, `:gradual` unfreezes a stage at a time. Fewer or more images:
`--config.data.examples_per_class=10`. All of them, over seeds: `python -m benchmarks.transfer`, whose
figures (of fewer epochs and steps than here) stand in docs/transfer.md: at 50 images 77 %, from scratch 57 %.
"""

from jaxcnn.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)

FIRST_FIVE = (0, 1, 2, 3, 4)  # airplane, automobile, bird, cat, deer
OTHER_FIVE = (5, 6, 7, 8, 9)  # dog, frog, horse, ship, truck


def get_config(kind: str = "finetune") -> Config:
    if kind not in ("pretrain", "scratch", "finetune", "gradual"):
        raise ValueError(f"{kind!r} is none of pretrain, scratch, finetune, gradual")
    config = Config(
        batch_size=128,
        num_epochs=10,
        data=DataConfig(
            name="tfds:cifar10",
            classes=FIRST_FIVE,
            mean=(0.4914, 0.4822, 0.4465),  # of all of CIFAR-10: weights and what they are transferred to see alike
            std=(0.2470, 0.2435, 0.2616),
        ),
        augment=AugmentConfig(flip=True, crop_padding=4),
        model=ModelConfig(name="resnet20"),
        optimizer=OptimizerConfig(name="nesterov", learning_rate=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
    )
    if kind == "pretrain":
        return config
    config.data.classes, config.data.examples_per_class = OTHER_FIVE, 50
    config.batch_size, config.eval_batch_size, config.num_epochs = 50, 250, 60
    config.eval_every_epochs, config.log_every_steps = 20, 50
    config.checkpoint = CheckpointConfig(every_epochs=20)
    if kind != "scratch":
        config.init_from, config.init_head = "runs/transfer_cifar10-pretrain", "new"
        config.optimizer.learning_rate = 0.02
        config.finetune = FinetuneConfig(head_rate=5.0)
    if kind == "gradual":
        config.finetune.unfreeze_epochs = (10, 20, 30)
    return config
