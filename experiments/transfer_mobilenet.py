"""MobileNetV2 of ImageNet on CIFAR-10: the last block, the last convolution and the head learn, all else stays.

Sandler et al. 2018, with torchvision's weights; the command says how to fetch them where they are not here.

    python -m jaxcnn.main --config experiments/transfer_mobilenet.py

Images of your own: `--config.data.name=folder:PATH`. More layers: `--config.finetune.frozen="('stem','stage1_*')"`.
Not run by us yet.
"""

from jaxcnn.config import (
    AugmentConfig,
    Config,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config() -> Config:
    return Config(
        num_epochs=5,
        batch_size=64,
        data=DataConfig(
            name="tfds:cifar10",
            image_size=128,
            mean=(0.485, 0.456, 0.406),  # those that the weights were trained with
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip=True),
        model=ModelConfig(name="mobilenet_v2", stem="imagenet"),
        init_from="torchvision:mobilenet_v2",
        init_head="new",
        finetune=FinetuneConfig(frozen=("*", "!stage7_*", "!last", "!head"), head_rate=5.0),
        optimizer=OptimizerConfig(name="nesterov", learning_rate=0.01, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5),
    )
