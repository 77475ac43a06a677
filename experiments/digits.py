"""A small CNN on scikit-learn's bundled digits (1,797 real 8x8 images): the embedded default.

    python -m jaxcnn.main --config experiments/digits.py

On 2 CPU cores 2 s of training, 13 s beside other work; test accuracy 99.33 ± 0.32 % (mean ± std of 5 seeds).
"""

from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_config() -> Config:
    return Config(
        num_epochs=40,
        batch_size=64,
        data=DataConfig(name="digits"),
        model=ModelConfig(name="cnn", dropout_rate=0.3),
        augment=AugmentConfig(crop_padding=1),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.01),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
    )
