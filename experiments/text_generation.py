"""A language model of one's own text: `--config.data.name=text:FILE`, characters by an LSTM of 256 units.

    python -m jaxcnn.main --config experiments/text_generation.py --config.data.name=text:FILE        # or :gru, :rnn
    python -m jaxcnn.main --config experiments/text_generation.py:transformer --config.data.name=text:FILE
    python -m jaxcnn.generate --workdir runs/text_generation --prompt "In the beginning "

docs/language.md says what a text may be. On the King James Bible (Debian's bible-kjv-text, as `bible -f
gen1:1-rev22:21` prints it; the last tenth is test), with --config.language.end=line --config.language.length=256
--config.batch_size=16 --config.num_epochs=5 --config.model.dropout_rate=0.2: 1.98 bits a character on test, 1.77 on
validation, the next character right in 60.50 % (n = 1); 22 minutes of CPU time.
"""

from jaxcnn.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LanguageConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jaxcnn.errors import UserError, nearest

# Learning rates at the peak; windows of evaluation, in which recurrent networks go on as far as they are asked to
RECIPES = {"lstm": (4e-3, 512), "gru": (4e-3, 512), "rnn": (1e-3, 512), "transformer": (2e-3, None)}


def get_config(model: str = "lstm") -> Config:
    if model not in RECIPES:
        raise UserError(f"text_generation.py:{model} is not known; {nearest(model, RECIPES)}")
    learning_rate, eval_length = RECIPES[model]
    return Config(
        task="language",
        num_epochs=4,
        batch_size=32,
        eval_every_epochs=0.5,
        data=DataConfig(name="text:", validation_fraction=0.05),
        language=LanguageConfig(length=64, eval_length=eval_length),
        model=ModelConfig(name=model),
        optimizer=OptimizerConfig(name="adamw", learning_rate=learning_rate, clip_norm=1.0),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.05),
        checkpoint=CheckpointConfig(every_epochs=0.5),
    )
