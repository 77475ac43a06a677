"""VGG-16 of ImageNet on CIFAR-10: the last three layers learn, the convolutions stay as they are.

Simonyan and Zisserman 2015, with torchvision's weights; the command says how to fetch them where they are not here.

    python -m jaxcnn.main --config experiments/transfer_vgg16.py

Images of your own: `--config.data.name=folder:PATH`. More layers: `--config.finetune.frozen="('stage1_*','stage2_*')"`.
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
        model=ModelConfig(name="vgg16", stem="imagenet"),
        init_from="torchvision:vgg16",
        init_head="new",
        finetune=FinetuneConfig(frozen=("*", "!dense1", "!dense2", "!head"), head_rate=10.0),
        optimizer=OptimizerConfig(name="nesterov", learning_rate=0.002, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5),
    )
