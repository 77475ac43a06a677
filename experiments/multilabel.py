"""Images of your own that have several labels each: ResNet-18 at 128 pixels; `multilabel.py:small` for small images.

    python -m jaxcnn.main --config experiments/multilabel.py --config.data.name=csv:FILE

FILE has the columns path, label and, if given, split; a label is `beach|sea`, or `-` where an image has none. A folder
whose class folders are named so serves as well. Each label has a sigmoid of its own and a threshold of a half
(`multilabel.thresholds`, one or one a label). Not run by us yet on sets of photographs.
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


def get_config(model: str = "resnet18") -> Config:
    small = model == "small"
    return Config(
        task="multilabel",
        num_epochs=60,
        batch_size=64,
        log_every_steps=20,
        data=DataConfig(name="csv:", image_size=None if small else 128),
        augment=AugmentConfig(flip=True, crop_padding=4 if small else 16),
        model=ModelConfig(name="resnet20") if small else ModelConfig(name=model, stem="imagenet"),
        loss=LossConfig(name="binary_cross_entropy"),
        optimizer=OptimizerConfig(
            name="nesterov",
            learning_rate=0.1,
            reference_batch_size=256,  # so that another batch size needs no other rate
            weight_decay=5e-4,
            clip_norm=1.0,
            ema_decay=0.998,  # over about the last 500 steps
        ),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=5),
    )
