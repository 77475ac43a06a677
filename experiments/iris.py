"""A small MLP on Fisher's iris (150 flowers, 4 lengths, 3 species), which comes with scikit-learn.

Fisher 1936, The use of multiple measurements in taxonomic problems.

    python -m jaxcnn.main --config experiments/iris.py

On 2 CPU cores 2 s of training.
"""

from jaxcnn.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_config() -> Config:
    return Config(
        task="tabular",
        num_epochs=60,
        batch_size=16,
        eval_every_epochs=5,
        log_every_steps=10,
        data=DataConfig(name="iris"),
        model=ModelConfig(name="mlp", hidden=(64, 64)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.01),
        schedule=ScheduleConfig(name="cosine"),
    )
