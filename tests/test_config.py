"""The config: overrides, types, derived values, and what people get wrong."""

import dataclasses
from pathlib import Path

import pytest
from absl import flags

from jaxcnn import config as config_lib
from jaxcnn.config import Config, checks, command_line
from jaxcnn.config.choices import CHOICES, TASKS, Choice
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from jaxcnn.training.build import build
from tests.runs import small_config

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "experiments" / "digits.py")


def load(*overrides: str, path: str = DIGITS) -> Config:
    values = flags.FlagValues()
    return load_config(["main", f"--config={path}", *overrides], flag_values=values)[0]


def another(value, metadata, hint, choices):
    """A valid value that differs, and how it is written on the command line."""
    if choices is not None:
        other = next(choice for choice in choices if choice != value)
        return other, other
    if hint is bool or hint == bool | None:
        return (not value), str(not value).lower()
    if hint in (int, int | None):
        other = int(max((value or 0) + 3, metadata.get("low", 0)))
        return other, str(other)
    if hint in (float, float | None):
        low, high = max(metadata["low"], metadata["above"], 0.0), min(metadata["high"], 2.0)
        other = low + (high - low) * (0.75 if value != low + (high - low) * 0.75 else 0.25)
        return other, repr(other)
    if hint in (str, str | None):
        return "somewhere", "somewhere"
    if hint == tuple[int, ...] | None:
        return (3, 5), "(3,5)"
    if hint not in (tuple[float, ...], tuple[float, ...] | None):
        return ("first", "second"), "('first','second')"
    return (0.25, 0.5), "(0.25,0.5)"


def leaves(schema=Config, prefix=""):
    for each in dataclasses.fields(schema):
        if dataclasses.is_dataclass(each.type):
            yield from leaves(each.type, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, each


@pytest.mark.parametrize(("path", "field"), leaves(), ids=lambda x: x if isinstance(x, str) else "")
def test_every_field_can_be_overridden(path, field, monkeypatch):
    # Rules between fields would need a second override.
    monkeypatch.setattr(command_line, "validate", lambda config, **_: checks.check_fields(config, ""))
    monkeypatch.setitem(TASKS, "another", Choice("of:another"))
    before = config_lib.flatten(load())
    value, text = another(before[path], field.metadata, field.type, CHOICES.get(path, field.metadata.get("choices")))
    after = config_lib.flatten(load(f"--config.{path}={text}"))
    assert after[path] == value
    assert {name for name in after if after[name] != before[name]} == {path}


def test_none_is_a_value_where_the_type_allows_it():
    assert load("--config.optimizer.clip_norm=1").optimizer.clip_norm == 1.0
    assert load("--config.optimizer.clip_norm=1", "--config.optimizer.clip_norm=none").optimizer.clip_norm is None
    with pytest.raises(UserError, match="must be an integer"):
        load("--config.seed=none")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizer.learning_rte=0.1", "did you mean 'learning_rate'"),
        ("--config.optimzer.learning_rate=0.1", "did you mean 'optimizer'"),
        ("--config.seed.low=1", "config.seed is a plain value"),
        ("--config.optimizer=sgd", "is a group; set one of its fields: name, learning_rate"),
        ("--config.batch_size=many", "must be an integer"),
        ("--config.batch_size=1.5", "must be an integer"),
        ("--config.batch_size=0", "must be >= 1"),
        ("--config.model.dropout_rate=1", "must be >= 0 and <= 0.95"),
        ("--config.optimizer.learning_rate=0", "must be > 0"),
        ("--config.optimizer.learning_rate=nan", "must be finite"),
        ("--config.schedule.name=cosin", "did you mean 'cosine'"),
        ("--config.parallel=pmpa", "did you mean 'pmap'"),
        ("--config.tensorboard=maybe", "must be true or false"),
        ("--config.data.mean=(0.5,'x')", "must be a number"),
        ("--config.seed", "has no value"),
        ("--config.schedule.name=step", "needs schedule.step_epochs"),
        ("--config.schedule.step_epochs=(3,)", "read by schedule.name=step only"),
        ("--config.schedule.name=one_cycle", "warms up by itself"),
        ("--config.optimizer.accumulate=3", "does not divide"),
        ("--config.num_epochs=1e300", "too large for float32"),
        ("--config.data.std=(1e-320,)", "too small or too large for float32"),
        ("--config.num_steps=1000000000", "must be >= 1 and <= 1e+08"),
        (f"--config.log_every_steps={'9' * 25}", "25 digits"),
        ("--config.schedule.name=constant --config.schedule.final_fraction=0.5", "final_fraction=0.5 is read by"),
        ("--config.optimizer.name=adam --config.optimizer.momentum=0.5", "optimizer.name is adam; leave it at 0.9"),
        ("--config.loss.focal_gamma=5", "is read by loss.name=focal only"),
        ("--config.optimizer.lookahead_decay=0.5", "read with optimizer.lookahead_every_steps only"),
        ("--config.schedule.name=step --config.schedule.step_epochs=(6,3)", "must increase"),
        (
            "--config.schedule.name=step --config.schedule.step_epochs=(3,) --config.schedule.warmup_epochs=3",
            "must increase, from after the warm-up",
        ),
        ("--confg.seed=1", "Unknown command line flag"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(UserError) as error:
        load(*override.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no get_config()"),
        ("def get_config(): return 3", "must return a jaxcnn.config.Config, not int"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError"),
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", "No module named"),
        (
            "from jaxcnn.config import Config\ndef get_config():\n  c = Config()\n  c.batchsize = 3\n  return c",
            "Config has no field 'batchsize'; did you mean 'batch_size'",
        ),
        ("from jaxcnn.config import Config\ndef get_config(): return Config(batch_size='3')", "must be an integer"),
        (
            "from jaxcnn.config import Config\ndef get_config(): return Config(num_epoch=3)",
            "Config has no field 'num_epoch'; did you mean 'num_epochs'",
        ),
    ],
)
def test_mistakes_in_the_experiment_are_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load(path=str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_experiment_names_the_nearest(tmp_path):
    (tmp_path / "cifar10.py").write_text("")
    with pytest.raises(UserError, match=r"did you mean '.*cifar10.py'"):
        load(path=str(tmp_path / "cifar.py"))


def test_json_round_trip():
    config = load("--config.schedule.name=step", "--config.schedule.step_epochs=(3,4)")
    assert config_lib.from_dict(config_lib.to_dict(config)) == config
    with pytest.raises(UserError, match="has no field 'sed'"):
        config_lib.from_dict({"sed": 1})


def test_what_an_older_version_has_accepted_is_read():
    """What nothing reads is refused where a run begins, not where it is looked at."""
    config_lib.validate(Config(loss=config_lib.LossConfig(focal_gamma=5)), unread=False)
    argv = ["main", "--config=experiments/digits.py", "--config.loss.focal_gamma=5"]  # of a run that has begun
    assert load_config(argv, flag_values=flags.FlagValues(), unread=False)[0].loss.focal_gamma == 5


def test_what_may_change_between_two_commands():
    a, b = small_config(), small_config(parallel="pmap", log_every_steps=9, checkpoint__keep_last=1)
    assert config_lib.changed_fields(a, b) == []
    b = small_config(optimizer__learning_rate=0.06, seed=4)
    assert config_lib.changed_fields(a, b) == ["seed (0 -> 4)", "optimizer.learning_rate (0.05 -> 0.06)"]


def test_a_config_from_before_there_were_tasks_is_the_same_run():
    saved = config_lib.to_dict(small_config())
    del saved["task"]
    assert config_lib.from_dict(saved) == small_config()
    assert config_lib.changed_fields(config_lib.from_dict(saved), small_config()) == []


def test_derived_values_follow_overrides():
    """Batch size and epochs change the schedule's length and the scaled rate; nothing stays stale."""
    changes = dict(num_steps=None, num_epochs=4.0, schedule__warmup_epochs=1.0, optimizer__reference_batch_size=48)
    small, _ = build(small_config(**changes))
    large, _ = build(small_config(**changes, batch_size=96))
    longer, _ = build(small_config(**{**changes, "num_epochs": 8.0}))
    assert (small.learning.total_steps, large.learning.total_steps, longer.learning.total_steps) == (108, 54, 216)
    assert float(large.learning.schedule(14)) == pytest.approx(2 * float(small.learning.schedule(27)), rel=0.02)
    assert float(small.learning.schedule(27)) == pytest.approx(0.05, rel=1e-3)  # the peak, after one epoch
    assert float(small.learning.schedule(107)) < 1e-3 < float(longer.learning.schedule(107))
