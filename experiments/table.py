"""A small MLP on a table of one's own: `--config.data.name=csv:FILE`, a class or a number in its last column.

    python -m jaxcnn.main --config experiments/table.py --config.data.name=csv:FILE              # classes
    python -m jaxcnn.main --config experiments/table.py:regression --config.data.name=csv:FILE   # numbers

docs/tables.md says what a file may be.
"""

from jaxcnn.config import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TableConfig
from jaxcnn.errors import UserError, nearest

LOSSES = {"classification": "cross_entropy", "regression": "mse"}


def get_config(kind: str = "classification") -> Config:
    if kind not in LOSSES:
        raise UserError(f"table.py:{kind} is not known; {nearest(kind, LOSSES)}")
    return Config(
        task="tabular",
        num_epochs=60,
        batch_size=32,
        eval_every_epochs=5,
        data=DataConfig(name="csv:"),
        table=TableConfig(kind=kind),
        model=ModelConfig(name="mlp", hidden=(64, 64)),
        loss=LossConfig(name=LOSSES[kind]),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.01),
        schedule=ScheduleConfig(name="cosine"),
    )
