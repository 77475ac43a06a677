"""A forecast of series of one's own: `--config.data.name=csv:FILE`, stamps in the first column, a series in each other.

    python -m jaxcnn.main --config experiments/forecasting.py --config.data.name=csv:FILE        # a linear map
    python -m jaxcnn.main --config experiments/forecasting.py:lstm --config.data.name=csv:FILE   # rnn gru tcn nbeats

docs/forecasting.md says what a file may be. Without a FILE it learns three drawn series of 1,500 hours: on 2 CPU
cores 4 s of training; the linear map's mean absolute error is 28.34 % of the seasonal naive forecast's (n = 1).
"""

from jaxcnn.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ForecastConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jaxcnn.errors import UserError, nearest

MODELS = {
    "linear": ModelConfig(name="linear"),
    "rnn": ModelConfig(name="forecast_rnn", hidden=(64,)),
    "lstm": ModelConfig(name="forecast_lstm", hidden=(64,)),
    "gru": ModelConfig(name="forecast_gru", hidden=(64,)),
    "tcn": ModelConfig(name="tcn"),
    "nbeats": ModelConfig(name="nbeats"),
}


def get_config(model: str = "linear") -> Config:
    if model not in MODELS:
        raise UserError(f"forecasting.py:{model} is not known; {nearest(model, MODELS)}")
    return Config(
        task="forecasting",
        num_epochs=20,
        batch_size=64,
        data=DataConfig(name="make_seasonal"),
        forecast=ForecastConfig(length=72, horizon=24, calendar=False),
        model=MODELS[model],
        loss=LossConfig(name="pinball"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.01, clip_norm=1.0),
        schedule=ScheduleConfig(name="cosine"),
        checkpoint=CheckpointConfig(every_epochs=5),
    )
