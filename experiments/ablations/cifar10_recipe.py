"""What the parts of the recipe for ResNet-20 on CIFAR-10 are worth where training is short.

Half of the paper's channels, 500 images a class, three epochs: 48 runs of about 53 CPU seconds each.

    python -m jaxcnn.sweep --study experiments/ablations/cifar10_recipe.py --workers 2

Test accuracy of the base 44.3 ± 1.4 % (n = 8); only the cosine is shown to matter, 7.5 points: docs/ablations.md.
"""

from jaxcnn.ablation import Study
from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_study() -> Study:
    return Study(
        config=Config(
            num_epochs=3,
            batch_size=64,
            eval_batch_size=500,
            eval_every_epochs=3,
            data=DataConfig(name="tfds:cifar10", validation_fraction=0.02, examples_per_class=500),
            augment=AugmentConfig(flip=True, crop_padding=4),
            model=ModelConfig(name="resnet20", width=0.5),
            optimizer=OptimizerConfig(name="nesterov", learning_rate=0.1, weight_decay=5e-4),
            schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5),
            tensorboard=False,
        ),
        variants={
            "base": {},
            "no augmentation": {"augment.flip": False, "augment.crop_padding": 0},
            "no weight decay": {"optimizer.weight_decay": 0.0},
            "constant rate": {"schedule.name": "constant"},
            "label smoothing": {"loss.label_smoothing": 0.1},
            "AdamW": {"optimizer.name": "adamw", "optimizer.learning_rate": 0.003, "optimizer.weight_decay": 0.05},
        },
        seeds=tuple(range(8)),  # with five comparisons, fewer could not pass Holm's correction
    )
