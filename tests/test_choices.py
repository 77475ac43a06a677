"""The lists of what a config may choose from: whole, and the only ones. Toys are added by an entry each."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.config import Config, DataConfig, LossConfig, OptimizerConfig, ScheduleConfig, flatten, validate
from jaxcnn.config.choices import (
    CHOICES,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    SOURCES,
    TASKS,
    Choice,
    LossChoice,
    SourceChoice,
    choose,
)
from jaxcnn.data.digits import open_digits
from jaxcnn.data.records import ImagesInMemory, Split, StoredSet
from jaxcnn.data.sources import Opening, open_stored
from jaxcnn.errors import UserError
from jaxcnn.tasks.task import TaskKind
from jaxcnn.training.optim import Rate, Span, make_chain
from tests.runs import arrays, rows, small_config, train

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = [
    pytest.param(choice, id=f"{field}={name}")
    for field, choices in {**CHOICES, "data.name": SOURCES}.items()
    for name, choice in choices.items()
]


@pytest.mark.parametrize("choice", ENTRIES)
def test_every_entry_is_a_function_and_reads_what_there_is(choice: Choice) -> None:
    for beginning in choice.reads:
        assert any(Choice("", (beginning,)).is_reader_of(option) for option in flatten(Config())), beginning
    assert isinstance(choice.made_by, str)
    assert callable(choice.load()) or isinstance(choice.load(), TaskKind)


def test_an_entry_without_a_function_is_one_line() -> None:
    for made_by in ("jaxcnn.training.optim:adamm", "jaxcnn.training.optin:adam", "adam", ""):
        with pytest.raises(UserError, match=r"is no function, as package\.module:function is") as error:
            Choice(made_by).load()
        assert "\n" not in str(error.value)


def test_what_reads_an_option() -> None:
    choice = Choice("", reads=("schedule.step_", "optimizer.groups.", "optimizer.beta1"))
    assert choice.is_reader_of("schedule.step_factor")
    assert choice.is_reader_of("optimizer.groups.head_rate")
    assert choice.is_reader_of("optimizer.beta1")
    assert not choice.is_reader_of("optimizer.beta11")
    assert not choice.is_reader_of("schedule.steps")


# ---- toys


def toy_loss(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Cross-entropy, and a hundred by which it is known again."""
    return 100 + optax.losses.softmax_cross_entropy(logits, targets)


def toy_optimizer(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """The sign of the gradient, with decay beside it."""
    return make_chain(optimizer, rate, optax.scale_by_sign(), decoupled=True)


def toy_schedule(schedule: ScheduleConfig, span: Span) -> optax.Schedule:
    """A peak, and nothing after the first half of the run."""
    return lambda step: jnp.where(step < span.total_steps // 2, span.peak, 0.0)


def toy_source(data: DataConfig, where: str, opening: Opening) -> StoredSet:
    """Two of the digits, by their names: toy:37."""
    digits = open_digits()
    records = digits.splits["train"].records
    assert isinstance(records, ImagesInMemory)
    chosen = np.flatnonzero(np.isin(records.classes, [int(name) for name in where]))
    pair = ImagesInMemory(data.name, records.images[chosen], (records.classes[chosen] == int(where[1])).astype(int))
    return StoredSet(tuple(where), digits.image_shape, {"train": Split(pair, np.arange(len(chosen)))}, "toy")


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four entries, and nothing else."""
    monkeypatch.setitem(LOSSES, "toy", LossChoice(toy_loss, reads=("loss.class_weights",)))
    monkeypatch.setitem(OPTIMIZERS, "toy", Choice(toy_optimizer, reads=("optimizer.clip_value",)))
    monkeypatch.setitem(SCHEDULES, "toy", Choice(toy_schedule, reads=("schedule.warmup_epochs",)))
    monkeypatch.setitem(SOURCES, "toy", SourceChoice(toy_source, takes="NAME", reads=("data.sampling",)))


@pytest.mark.usefixtures("toys")
def test_a_toy_of_each_kind_trains(tmp_path: Path) -> None:
    config = small_config(
        loss__name="toy", optimizer__name="toy", optimizer__learning_rate=0.01, schedule__name="toy",
        data__name="toy:38", model__dropout_rate=0.0, optimizer__ema_decay=None, log_every_steps=4,
    )  # fmt: skip
    result = train(config, tmp_path)
    assert result["splits"]["test"]["num_examples"] == 36  # a tenth of the threes and eights
    assert rows(tmp_path)[-1]["loss"] == pytest.approx(100, abs=5)

    steps = [arrays(tmp_path, config, step)["state/params/conv2/kernel"] for step in (2, 4, 6, 8)]
    sizes = np.abs(steps[1] - steps[0]) / 0.01  # two steps by the sign: 0 or 2, or less where a gradient is 0
    assert np.isin(sizes.round(3), (0, 1, 2)).all()
    assert sizes.max() == pytest.approx(2, rel=1e-3)
    np.testing.assert_array_equal(steps[1], steps[3])  # the second half has no rate


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("option", "value", "chooser", "chosen"),
    [
        ("loss.class_weights", "balanced", "loss.name", "cross_entropy"),
        ("optimizer.clip_value", 1.0, "optimizer.name", "nesterov"),
        ("schedule.warmup_epochs", 1.0, "schedule.name", "cosine"),
        ("data.sampling", "balanced", "data.name", "digits"),
    ],
)
def test_what_a_toy_alone_reads_is_refused_under_others(option: str, value: Any, chooser: str, chosen: str) -> None:
    changes = {option.replace(".", "__"): value}
    default = flatten(Config())[option]
    with pytest.raises(UserError) as error:
        small_config(**changes)
    assert str(error.value) == (
        f"{option}={value} is read by {chooser}=toy only, and {chooser} is {chosen}; leave it at {default!r}"
    )
    small_config(**changes, **{chooser.replace(".", "__"): "toy:38" if chooser == "data.name" else "toy"})


def test_what_one_task_reads_is_refused_under_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "counting", Choice("of:counting", reads=("loss.",)))
    validate(Config(task="counting", loss=LossConfig(label_smoothing=0.1)))
    config = Config(task="counting")
    config.augment.flip = True
    with pytest.raises(UserError) as error:
        validate(config)
    assert str(error.value) == (
        "augment.flip=True is read by task=classification, multilabel, segmentation only, and task is counting; "
        "leave it at False"
    )
    with pytest.raises(UserError, match="task='countin' is not known; did you mean 'counting'"):
        validate(Config(task="countin"))


def test_what_a_choice_asks_is_said_by_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    asks = Choice(toy_optimizer, check=lambda config: ["toy wants seed=7"] if config.seed != 7 else [])
    monkeypatch.setitem(OPTIMIZERS, "toy", asks)
    small_config(optimizer__name="toy", seed=7)
    with pytest.raises(UserError, match="toy wants seed=7"):
        small_config(optimizer__name="toy")


@pytest.mark.usefixtures("toys")
def test_a_toy_is_among_the_names_that_messages_list() -> None:
    for field in ("loss.name", "optimizer.name", "schedule.name"):
        with pytest.raises(UserError, match=r"one of: .*\btoy\b"):
            small_config(**{field.replace(".", "__"): "zzzzzz"})
        with pytest.raises(UserError, match=r"one of: .*\btoy\b"):
            choose(field, "zzzzzz")
    for name in ("toy", "toy:", "qqqqq", "digits:", "digits:8"):
        with pytest.raises(UserError, match="toy:NAME"):
            open_stored(DataConfig(name=name))


class GreyRecords:
    """Records of a kind that sources.py has never heard of; opening reads none."""

    def __len__(self) -> int:
        return 3


def test_colour_is_not_promised_of_records_that_cannot_be_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(data: DataConfig, where: str, opening: Opening) -> StoredSet:
        records: Any = GreyRecords()
        return replace(open_digits(), splits={"train": Split(records, np.arange(3))})

    monkeypatch.setitem(SOURCES, "toy", SourceChoice(others))
    assert open_stored(DataConfig(name="toy", channels=1)).image_shape == (8, 8, 1)
    with pytest.raises(UserError, match=r"data.channels=3: toy has images of 1 channels, and its source converts none"):
        open_stored(DataConfig(name="toy", channels=3))


def test_what_a_choice_asks_is_said_before_jax_is_imported() -> None:
    """Of every name, so that a mistake is answered at once."""
    code = (
        "import sys; from jaxcnn.config import Config, choices, validate\n"
        "for field, names in choices.CHOICES.items():\n"
        "    for name, choice in names.items():\n"
        "        if choice.check is not None:\n"
        "            list(choice.check(Config()))\n"
        "validate(Config())\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
