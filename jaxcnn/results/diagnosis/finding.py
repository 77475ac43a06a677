"""A finding, and the remedies that the checks offer: options of jaxcnn.main and commands, as they are typed."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxcnn.run.facts import Facts

SEVERITIES = ("error", "warning", "note", "not examined")  # as jaxcnn.data check has them, and what could not be told

# Differences of accuracies count where they are beyond chance: three standard errors of the smaller sample.
STANDARD_ERRORS = 3.0
LISTED = 5  # names that a sentence lists


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or, with severity "not examined", that cannot be told from what is there."""

    name: str
    severity: str  # one of SEVERITIES
    sentence: str  # with the figure it rests on
    remedies: tuple[str, ...] = ()  # options of jaxcnn.main, or commands, the likeliest first


def listed(names: Sequence[str], count: int = LISTED) -> str:
    """The first names of a list, as a sentence has them."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


# ---- remedies


def unset(facts: Facts, *options: str) -> tuple[str, ...]:
    """Those of the options `a.b=value` that the run has not on already, as they are typed."""
    off = (None, 0, False, "none")
    usable = [each for each in options if facts.has_images or not each.startswith("augment.")]
    return tuple(f"--config.{each}" for each in usable if facts.option(each.partition("=")[0]) in off)


def times_rate(facts: Facts, factor: float) -> str:
    """The learning rate times a factor."""
    return f"--config.optimizer.learning_rate={factor * facts.option('optimizer.learning_rate'):.2g}"


def lower_rate(facts: Facts) -> str:
    """A third of the learning rate."""
    return times_rate(facts, 1 / 3)


def find_rate() -> str:
    """The command that finds a learning rate."""
    return "python -m jaxcnn.lr_find --config EXPERIMENT"


def longer(facts: Facts) -> str:
    """Twice as long a training."""
    if facts.option("num_steps"):
        return f"--config.num_steps={2 * facts.option('num_steps')}"
    return f"--config.num_epochs={2 * facts.option('num_epochs'):g}"


def larger_model(facts: Facts) -> str:
    """A model that can learn more."""
    if facts.option("task") == "text":
        of_text = {"text_cnn": "model.width=2", "text_bag": "text.embedding_size=256"}
        return f"--config.{of_text.get(str(facts.option('model.name')), 'model.features=256')}"
    if facts.option("model.name") == "linear":
        return "--config.model.name=nbeats"
    return "--config.model.name=resnet18" if facts.has_images else "--config.model.hidden='(512,512)'"


def balance(facts: Facts) -> tuple[str, ...]:
    """The two ways to balance classes, less those that are on."""
    uniform = facts.option("data.sampling") in (None, "uniform")
    return (
        *(() if facts.option("loss.class_weight_values") else unset(facts, "loss.class_weights=balanced")),
        *(("--config.data.sampling=balanced",) if uniform else ()),
    )


def turn_off_regularisation(facts: Facts) -> tuple[str, ...]:
    """Options that turn off what is on and makes training harder than validation."""
    pieces = {
        "augment.mixup": "0", "augment.cutmix": "0", "augment.cutout": "0", "augment.random_erasing": "0",
        "augment.randaugment_ops": "0", "augment.trivial_augment": "false", "augment.random_resized_crop": "false",
        "model.dropout_rate": "0", "model.stochastic_depth": "0",
    }  # fmt: skip
    return tuple(f"--config.{name}={value}" for name, value in pieces.items() if facts.option(name))
