"""Checks of the rows of training and validation: metrics.jsonl, timing.jsonl and the summary.

Every threshold stands above the check that uses it, with its reason.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from jaxcnn.results.diagnosis.finding import (
    STANDARD_ERRORS,
    Finding,
    find_rate,
    larger_model,
    longer,
    lower_rate,
    times_rate,
    turn_off_regularisation,
    unset,
)
from jaxcnn.run.facts import Facts, is_finite, not_finite_in

# Part of ln(classes), the loss of guessing, below which no change of a loss counts; ours.
LOSS_FLOOR = 0.1


def not_finite(facts: Facts) -> Iterator[Finding]:
    """Rows in which a metric is not finite."""
    for split, name in (("train", "training"), ("validation", "validation")):
        rows = [row for row in facts.rows if row["split"] == split]
        bad = [row for row in rows if not_finite_in(row)]
        if not bad:
            continue
        what = ", ".join(not_finite_in(bad[0])).replace("_", " ")
        sentence = f"the {what} of {name} is not finite at step {bad[0]['step']:,}"
        sentence += f", nor in {len(bad) - 1:,} later rows of {len(rows):,}" if len(bad) > 1 else ""
        if split == "train" and facts.summary is None:
            sentence += "; there the run ended, and the checkpoints before it are kept"
        elif split == "validation":
            sentence += "; by such an evaluation no weights are the best"
        yield Finding("not finite", "error", sentence, (lower_rate(facts), "--config.optimizer.clip_norm=1"))


DIVERGED = 4.0  # training's last loss / its least one; where fast.ai's learning-rate finder stops


def _diverged(facts: Facts) -> Iterator[Finding]:
    """A training loss that ends far above its least."""
    losses = _training_losses(facts)
    least = int(losses.argmin())
    if losses[least] > 0 and losses[-1] >= DIVERGED * losses[least] and losses[-1] >= losses[0] / 2:
        yield Finding(
            "diverged",
            "error",
            f"training loss ends at {losses[-1]:.3g}, {losses[-1] / losses[least]:.1f} times its least, "
            f"{losses[least]:.3g} at step {facts.train[least]['step']:,}",
            (lower_rate(facts), "--config.optimizer.clip_norm=1", find_rate()),
        )


SPIKE = 2.0  # a row's training loss / the median of the five before it; ours
SPIKE_ROWS = 5


def _spikes(facts: Facts) -> Iterator[Finding]:
    """Rows in which the training loss jumps."""
    losses = _training_losses(facts)
    high = [
        place
        for place in range(SPIKE_ROWS, len(losses))
        if losses[place] >= SPIKE * np.median(losses[place - SPIKE_ROWS : place])
        and losses[place] - np.median(losses[place - SPIKE_ROWS : place]) >= LOSS_FLOOR * facts.guessing_loss
    ]
    if high:
        worst = max(high, key=lambda place: losses[place] / np.median(losses[place - SPIKE_ROWS : place]))
        row, before = facts.train[worst], np.median(losses[worst - SPIKE_ROWS : worst])
        yield Finding(
            "learning rate at the edge",
            "warning",
            f"training loss jumps in {len(high)} of {len(losses)} rows, the furthest from {before:.3g} to "
            f"{losses[worst]:.3g} at step {row['step']:,}, where the learning rate is {row['learning_rate']:.3g}",
            (
                *unset(facts, "optimizer.clip_norm=1"),
                *unset(facts, "schedule.warmup_epochs=1"),
                lower_rate(facts),
                find_rate(),
            ),
        )


# The loss fell by so little, yet in so many of at least so many rows; ours.
SLOW_FALL, SLOW_SHARE, SLOW_ROWS = 0.25, 0.8, 10


def _slow(facts: Facts) -> Iterator[Finding]:
    """A training loss that falls steadily, and by little."""
    losses = _training_losses(facts)
    if len(losses) < SLOW_ROWS:
        return
    falling, fall = float((np.diff(losses) < 0).mean()), float(1 - losses[-1] / losses[0])
    if falling >= SLOW_SHARE and 0 < fall < SLOW_FALL and facts.train[-1].get("accuracy", 0) < 1 - LOSS_FLOOR:
        yield Finding(
            "learning rate too small",
            "warning",
            f"training loss falls in {falling:.0%} of {len(losses)} rows, and yet by {fall:.1%} in all, from "
            f"{losses[0]:.3g} to {losses[-1]:.3g}",
            (times_rate(facts, 10), find_rate()),
        )


# Between training, which augmentation and dropout make harder, and validation. Ours: ResNets of CIFAR-10 end with about
# 0.99 against 0.93 under crop and flip (He et al. 2016, figure 6).
OVERFIT_GAP = 0.10
OVERFIT_RISE = 1.25  # validation's last loss / its least one; ours


def _overfitting(facts: Facts) -> Iterator[Finding]:
    """A gap between training and validation, or a validation loss that rises while training's falls."""
    if not facts.validation:
        return
    last = facts.validation[-1]
    signs = []
    if facts.has_accuracy:
        train, validation = facts.trained("accuracy", len(facts.validation) - 1), last["accuracy"]
        gap = train - validation
        if gap >= OVERFIT_GAP and gap > STANDARD_ERRORS * facts.error_of(validation):
            signs.append(
                f"accuracy is {train:.1%} in training and {validation:.1%} in validation; under augmentation, dropout "
                "and weights that still moved the first is too low, so the gap is larger still"
            )
    losses = [row["loss"] for row in facts.validation]
    least = int(np.argmin(losses))
    rises = losses[-1] >= OVERFIT_RISE * losses[least]
    if rises and losses[-1] - losses[least] >= LOSS_FLOOR * facts.guessing_loss:
        before, after = facts.trained("loss", least), facts.trained("loss", len(losses) - 1)
        if after < before:
            signs.append(
                f"validation loss rose from {losses[least]:.3g} at step {facts.validation[least]['step']:,} to "
                f"{losses[-1]:.3g}, while training's fell from {before:.3g} to {after:.3g}"
            )
    if signs:
        yield Finding(
            "overfitting",
            "warning",
            "; ".join(signs),
            (
                *unset(facts, "augment.flip=true", "augment.crop_padding=4", "augment.randaugment_ops=2"),
                *unset(facts, "optimizer.weight_decay=5e-4", "model.dropout_rate=0.2", "loss.label_smoothing=0.1"),
                *unset(facts, "early_stop.patience_evaluations=10"),
            ),
        )


UNDERFIT_SKILL = 0.5  # of the way from guessing to all right, in training or validation, whichever is more; ours


def _underfitting(facts: Facts) -> Iterator[Finding]:
    """An accuracy no better than guessing, or not far from it."""
    if facts.summary is None or not facts.validation:
        return
    train, validation = (
        facts.trained("accuracy", len(facts.validation) - 1),
        max(row[facts.accuracy] for row in facts.validation),
    )
    guessing = facts.guessing_accuracy
    if guessing == 1:  # validation is of one class
        return
    told_apart = guessing + STANDARD_ERRORS * facts.error_of(guessing)  # beyond 1, so few examples tell nothing
    if validation <= told_apart < 1:
        yield Finding(
            "nothing learned",
            "error",
            f"the best validation accuracy is {validation:.1%}, no more than the {guessing:.1%} of always naming one "
            f"class, of which {facts.data['num_examples']['validation']:,} examples can tell",
            (find_rate(), lower_rate(facts), "--config.schedule.name=constant"),
        )
    elif (skill := (max(train, validation) - guessing) / (1 - guessing)) < UNDERFIT_SKILL:
        yield Finding(
            "underfitting",
            "warning",
            f"accuracy is {train:.1%} in training and at best {validation:.1%} in validation: {skill:.0%} of the way "
            "from guessing to all right",
            (longer(facts), find_rate(), larger_model(facts), *turn_off_regularisation(facts)),
        )


# Validation above training, where nothing strong makes training harder and where something does; from so many
# evaluations on, and while training itself gains less than half of that an evaluation; ours.
LEAK_GAP, LEAK_GAP_REGULARISED, LEAK_EVALUATIONS = 0.05, 0.2, 5


def _leak_by_accuracy(facts: Facts) -> Iterator[Finding]:
    """A validation that is better than training, beyond what regularisation explains."""
    count = len(facts.validation)
    if count < LEAK_EVALUATIONS:
        return
    train, before = (facts.trained("accuracy", count - back) for back in (1, 2))
    validation = facts.validation[-1]["accuracy"]
    regularised = bool(turn_off_regularisation(facts)) or facts.option("model.dropout_rate") is None
    explained = LEAK_GAP_REGULARISED if regularised else LEAK_GAP
    settled = train - before < explained / 2  # while weights move fast, their mean is well behind the last of them
    if settled and validation - train >= max(explained, STANDARD_ERRORS * facts.error_of(validation)):
        yield Finding(
            "validation better than training",
            "warning",
            f"accuracy is {validation:.1%} in validation and {train:.1%} in training, more than augmentation and "
            "dropout explain: are there copies of training images in it, or is it easier?",
            (f"python -m jaxcnn.data check {facts.data['name']} --json {facts.workdir}/data_check.json",)
            if facts.has_images
            else (),
        )


IMPROVING_PART, IMPROVING_GAIN = 0.2, 0.01  # of the run, its end; so much accuracy was gained in it; ours


def _still_improving(facts: Facts) -> Iterator[Finding]:
    """A validation accuracy that still grows at the end."""
    count = len(facts.validation)
    if facts.summary is None or "stopped" in facts.summary or count < 3:
        return
    last = facts.validation[-max(3, math.ceil(IMPROVING_PART * count)) :]
    steps, values = ([row[name] for row in last] for name in ("step", facts.accuracy))
    gain = float(np.polyfit(steps, values, 1)[0]) * (steps[-1] - steps[0])
    if gain >= IMPROVING_GAIN and gain > 2 * facts.error_of(values[-1]):
        yield Finding(
            "still improving",
            "note",
            f"validation accuracy grew by {gain:.1%} over the last {len(last)} of {count} evaluations, to "
            f"{values[-1]:.1%}",
            (f"{longer(facts)} (in a new --workdir)",),
        )


STOPPED_PART, STOPPED_EVALUATIONS = 1 / 3, 10  # best before this part of the run, of at least so many evaluations; ours


def _stopped_improving(facts: Facts) -> Iterator[Finding]:
    """A best evaluation that came early in the run."""
    count = len(facts.validation)
    if facts.summary is None or "stopped" in facts.summary or count < STOPPED_EVALUATIONS:
        return
    best = max(facts.validation, key=lambda row: (row[facts.accuracy], row["step"]))
    since = sum(row["step"] > best["step"] for row in facts.validation)
    if best["step"] < STOPPED_PART * facts.validation[-1]["step"]:
        yield Finding(
            "stopped improving long ago",
            "note",
            f"the best validation accuracy, {best[facts.accuracy]:.1%}, was reached at step {best['step']:,} of "
            f"{facts.validation[-1]['step']:,}, {since} evaluations before the end",
            (
                f"--config.early_stop.patience_evaluations={max(5, count // 5)}",
                "--config.schedule.name=plateau",
            ),
        )


SMALL_HALF_WIDTH, SMALL_EVALUATIONS = 0.02, 4  # of validation accuracy's 95 % interval; of its later half; ours


def _small_validation(facts: Facts) -> Iterator[Finding]:
    """A validation split too small to tell its evaluations apart."""
    late = facts.validation[len(facts.validation) // 2 :]
    if len(late) < SMALL_EVALUATIONS:
        return
    values = [row[facts.accuracy] for row in late]
    half_width = 1.96 * facts.error_of(values[-1])
    spread = max(values) - min(values)
    if half_width >= SMALL_HALF_WIDTH and 0 < spread < 2 * half_width:
        fraction = facts.option("data.validation_fraction") or 0.1
        yield Finding(
            "validation too small",
            "note",
            f"on {facts.data['num_examples']['validation']:,} examples {values[-1]:.1%} is known to ± {half_width:.1%} "
            f"(95 %), and the last {len(late)} evaluations, of which the best chooses the weights, differ by "
            f"{spread:.1%}",
            (f"--config.data.validation_fraction={min(0.5, 2 * fraction):g}", "--config.data.fold=1/5"),
        )


WAITING, WAITING_DEVICES, WAITING_SECONDS = 0.2, 0.1, 10.0  # as run/log.py has them; in runs that train so long


def _waiting(facts: Facts) -> Iterator[Finding]:
    """Devices that wait for the host's data."""
    rows = [row for row in facts.timing if all(map(is_finite, row.values()))]
    if sum(row["seconds"] for row in rows) < WAITING_SECONDS:
        return
    data, devices = (float(np.median([row[name] for row in rows])) for name in ("data_wait", "device_wait"))
    if data > WAITING and devices < WAITING_DEVICES:
        yield Finding(
            "devices wait for data",
            "note",
            f"the host spends {data:.0%} of training waiting for data, in the median",
            (*unset(facts, "data.resident=true"), "--config.data.prefetch_batches=16"),
        )


def _training_losses(facts: Facts) -> np.ndarray:
    """The training loss of each row."""
    return np.array([row["loss"] for row in facts.train], float)


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _diverged, _spikes, _slow, _overfitting, _underfitting, _leak_by_accuracy, _still_improving, _stopped_improving,
    _small_validation, _waiting,
)  # fmt: skip
OF_ACCURACY = (_underfitting, _leak_by_accuracy, _still_improving, _stopped_improving, _small_validation)
