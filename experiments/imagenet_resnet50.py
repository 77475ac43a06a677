"""ResNet-50 v1.5 on ImageNet, 90 epochs; streams from a prepared TFDS `imagenet2012`.

Goyal et al. 2017, Accurate, large minibatch SGD: rate 0.1 for each 256 images, 5 epochs of warm-up. Label smoothing
0.1.

    python -m jaxcnn.main --config experiments/imagenet_resnet50.py

Not run by us yet; published recipes of this kind reach 76 to 77 % top-1.
"""

from jaxcnn.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config(model: str = "resnet50") -> Config:
    return Config(
        num_epochs=90,
        batch_size=1024,
        log_every_steps=100,
        data=DataConfig(
            name="tfds:imagenet2012",
            image_size=224,
            validation_fraction=0.01,
            stratify=False,  # that would read all 150 GB for their labels first
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            num_workers=16,
            expected_examples=1_281_167,
            expected_classes=1000,
        ),
        augment=AugmentConfig(flip=True, random_resized_crop=True),
        model=ModelConfig(name=model, stem="imagenet", dtype="bfloat16"),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(name="nesterov", learning_rate=0.1, reference_batch_size=256, weight_decay=5e-5),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=5),
    )
