"""A folder of your own images: ResNet-18 at 128 pixels; `folder.py:small` for small images, `:resnet50` for more.

    python -m jaxcnn.main --config experiments/folder.py --config.data.name=folder:PATH

Below PATH lie folders named after the classes, PATH/cat/001.jpg, or, with splits of your own, PATH/train/cat/001.jpg
with train, validation (or val) and test; what is missing is held out of train. `csv:FILE` (columns path, label, split)
and `npz:FILE` (x_train, y_train, …) serve as well. More accurate and slower: `--config.data.image_size=224`.

`:small` keeps the size that all images have, trains ResNet-20 with a 3x3 stem. Mirroring is wrong for letters and
digits: `--config.augment.flip=false`. Not run by us yet on sets of photographs.
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
        num_epochs=60,
        batch_size=64,
        log_every_steps=20,
        data=DataConfig(name="folder:", image_size=None if small else 128),
        augment=AugmentConfig(flip=True, crop_padding=4 if small else 16),
        model=ModelConfig(name="resnet20") if small else ModelConfig(name=model, stem="imagenet"),
        loss=LossConfig(label_smoothing=0.1),
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
