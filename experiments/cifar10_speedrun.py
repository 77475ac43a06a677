"""CIFAR-10 in seconds (Jordan 2024, arXiv:2404.00498): `:94_muon`, the fastest, and `:93`, `:94`, `:95`, `:96`, named
after the test accuracy in percent that each reached on average over hundreds of runs.

    python -m jaxcnn.main --config experiments/cifar10_speedrun.py:94_muon --config.seed=0 --workdir runs/muon-0

It trains on all 50,000 images, without validation, and measures the last weights on test once, averaged over six views
of each image. A recipe's accuracy is the mean of that over n runs of other seeds. On CPUs float32 is faster:
`--config.model.dtype=float32`. Reached on CIFAR-10 stored as JPEG, on 2 CPU cores: 94_muon 90.65 % (n = 1, 16 min), 93
89.22 ± 0.19 % (n = 3). 94, 95 and 96 are not run by us yet, nor is anything on a GPU.

The recipes sum the loss over the batch, where a step here takes its mean, so rates are theirs times the batch and
decays theirs divided by it. They drop each epoch's last partial batch, and count 48 steps of 1,024 as an epoch; here
batches cross the epochs' ends, and the number of steps is theirs.
"""

import math

from jaxcnn.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    GroupsConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config(recipe: str = "94_muon") -> Config:
    recipes = {"93": _sgd, "94": _sgd, "94_muon": _muon, "95": _sgd, "96": _sgd}
    if recipe not in recipes:
        raise ValueError(f"there is no recipe {recipe!r}; choose among {', '.join(recipes)}")
    return recipes[recipe](recipe)


def _shared(recipe: str) -> Config:
    return Config(
        eval_tta="flip_translate",
        eval_batch_size=2000,
        eval_every_epochs=1000,  # there is nothing to evaluate; at 1, a line an epoch is printed
        log_every_steps=25,
        data=DataConfig(
            name="tfds:cifar10",
            validation_fraction=0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        augment=AugmentConfig(alternating_flip=True, crop_padding=2),
        model=ModelConfig(name=f"airbench{recipe}", dtype="bfloat16", batch_norm_momentum=0.6),
        loss=LossConfig(label_smoothing=0.2),
        checkpoint=CheckpointConfig(every_epochs=1000, keep_best=0),
    )


def _sgd(recipe: str) -> Config:
    config = _shared(recipe)
    epochs = {"93": 11, "94": 9.9, "95": 15, "96": 37}[recipe]
    rate = {"93": 11.5, "94": 11.5, "95": 10.0, "96": 9.0}[recipe]
    decay = 0.012 if recipe == "96" else 0.0153
    config.batch_size, config.num_steps = 1024, math.ceil(48 * epochs)
    config.optimizer = OptimizerConfig(
        name="airbench_sgd",
        momentum=0.85,
        learning_rate=rate / (1 + 1 / (1 - 0.85)),  # theirs, rate / (1024 * (1 + 1 / (1 - 0.85))), times 1024
        reference_batch_size=1024,
        weight_decay=decay / rate,  # theirs, 1024 * decay / rate, by 1024
        lookahead_every_steps=5,
        groups=GroupsConfig(norm_bias_rate=64, whiten_bias_steps=3 * 48),
    )
    config.schedule = ScheduleConfig(name="triangle", peak_fraction=0.23, initial_fraction=0.2, final_fraction=0.07)
    if recipe == "96":
        config.schedule.peak_fraction, config.schedule.final_fraction = 0.1, 0.0
        config.augment.crop_padding, config.augment.cutout = 4, 12
        config.model.batch_norm_momentum = 0.9
    return config


def _muon(recipe: str) -> Config:
    config = _shared(recipe)
    config.batch_size, config.num_epochs = 2000, 8
    muon_rate = 0.24  # of a direction without length: the same for mean and sum
    config.optimizer = OptimizerConfig(
        name="airbench_muon",
        learning_rate=muon_rate,
        momentum=0.6,
        weight_decay=2e-6 * 2000 / muon_rate,  # each group but Muon's shrinks by 2e-6 * 2000 a step at the peak
        groups=GroupsConfig(
            norm_bias_rate=0.053 * 2000 / muon_rate,
            head_rate=0.67 * 2000 / muon_rate,
            whiten_bias_rate=0.053 * 2000 / muon_rate,
            whiten_bias_steps=3 * 25,
            muon_rest_momentum=0.85,
        ),
    )
    config.schedule = ScheduleConfig(name="linear")
    return config
