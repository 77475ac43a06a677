"""A text's class by Kim's convolutional network (Kim 2014): `--config.data.name=csv:FILE`, columns text and label.

    python -m jaxcnn.main --config experiments/sentiment.py --config.data.name=csv:FILE
    python -m jaxcnn.main --config experiments/sentiment.py:text_lstm --config.data.name=tfds:imdb_reviews

On the movie snippets of benchmarks/sentiment.py, with GloVe's vectors of 50 numbers in both channels, 77.66 ± 1.28 % (4
folds of ten, one seed each), in about 80 s of CPU; docs/text.md has the linear model beside it, which is better.
"""

from jaxcnn.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TextConfig
from jaxcnn.errors import UserError, nearest

MODELS = {
    "text_cnn": ModelConfig(name="text_cnn", dropout_rate=0.5),
    "text_bag": ModelConfig(name="text_bag", dropout_rate=0.5),
    "text_lstm": ModelConfig(name="text_lstm", features=128, bidirectional=True, dropout_rate=0.5),
    "text_gru": ModelConfig(name="text_gru", features=128, bidirectional=True, dropout_rate=0.5),
    "text_transformer": ModelConfig(name="text_transformer", features=128, layers=2, dropout_rate=0.3),
}


def get_config(model: str = "text_cnn") -> Config:
    if model not in MODELS:
        raise UserError(f"sentiment.py:{model} is not known; {nearest(model, MODELS)}")
    return Config(
        task="text",
        num_epochs=5,
        batch_size=64,
        eval_every_epochs=0.5,
        data=DataConfig(name="csv:"),
        text=TextConfig(level="word", vocabulary_size=20_000, max_length=256),
        model=MODELS[model],
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.01),
        schedule=ScheduleConfig(name="cosine"),
        checkpoint=CheckpointConfig(every_epochs=1),
    )
