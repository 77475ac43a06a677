"""What is wrong with a run, in words: each finding with the figure it rests on and what the config offers against it.

Pure: what stands in a run's folder in (`Facts`, which run/facts.py reads), findings out. Every threshold stands here
with its reason; where there is no source it is our own choice, said so, and kept so wide that healthy runs pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxcnn.run.facts import Facts, is_finite, not_finite_in

SEVERITIES = ("error", "warning", "note", "not examined")  # as jaxcnn.data check has them, and what could not be told

# Differences of accuracies count where they are beyond chance: three standard errors of the smaller sample.
STANDARD_ERRORS = 3.0
# Between training, which augmentation and dropout make harder, and validation. Ours: ResNets of CIFAR-10 end with about
# 0.99 against 0.93 under crop and flip (He et al. 2016, figure 6).
OVERFIT_GAP = 0.10
OVERFIT_RISE = 1.25  # validation's last loss / its least one; ours
UNDERFIT_SKILL = 0.5  # of the way from guessing to all right, in training or validation, whichever is more; ours
# Part of ln(classes), the loss of guessing, below which no change of a loss counts; ours.
LOSS_FLOOR = 0.1
DIVERGED = 4.0  # training's last loss / its least one; where fast.ai's learning-rate finder stops
SPIKE = 2.0  # a row's training loss / the median of the five before it; ours
SPIKE_ROWS = 5
SLOW_FALL, SLOW_SHARE, SLOW_ROWS = 0.25, 0.8, 10  # the loss fell by so little, yet in so many of at least so many rows
# ||update|| / ||weights|| a layer. About 1e-3 is usual (Karpathy, CS231n, "ratio of weights:updates"); ours: a hundred
# times from that.
UPDATE_RATIO_HIGH, UPDATE_RATIO_LOW = 1e-1, 1e-5
EXPLODING = 100.0  # a gradient norm / the run's median, of more than SPIKE_ROWS; ours
VANISHING = 1e-4  # a layer's gradient norm / that of the layer where it is largest, in the median; ours
DEAD = 0.4  # channels without a positive value; "as much as 40 %" die of too high a rate (CS231n, "ReLU")
IMBALANCE = 10.0  # largest class / smallest, as jaxcnn.data check has it; effects grow from there: Buda et al. 2018
NEVER_PREDICTED_EXAMPLES = 10  # a class of fewer may be missed by chance
CONFIDENT, NUM_CONFIDENT_ERRORS = 0.99, 5  # who is so sure may err in 1 %; fewer than five errors tell nothing
# Validation above training, where nothing strong makes training harder and where something does; from so many
# evaluations on, and while training itself gains less than half of that an evaluation; ours.
LEAK_GAP, LEAK_GAP_REGULARISED, LEAK_EVALUATIONS = 0.05, 0.2, 5
IMPROVING_PART, IMPROVING_GAIN = 0.2, 0.01  # of the run, its end; so much accuracy was gained in it; ours
STOPPED_PART, STOPPED_EVALUATIONS = 1 / 3, 10  # best before this part of the run, of at least so many evaluations; ours
SMALL_HALF_WIDTH, SMALL_EVALUATIONS = 0.02, 4  # of validation accuracy's 95 % interval; ours
WAITING, WAITING_DEVICES, WAITING_SECONDS = 0.2, 0.1, 10.0  # as run/log.py has them; in runs that train so long


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or, with severity "not examined", that cannot be told from what is there."""

    name: str
    severity: str  # one of SEVERITIES
    sentence: str  # with the figure it rests on
    remedies: tuple[str, ...] = ()  # options of jaxcnn.main, or commands, the likeliest first


def diagnose(facts: Facts) -> list[Finding]:
    """All findings, the gravest first; none but those "not examined" where nothing is wrong."""
    found = list(_not_finite(facts))
    with np.errstate(divide="ignore", invalid="ignore"):  # ratios to losses of 0
        checks = [check for check in _CHECKS if facts.has_accuracy or check not in _OF_ACCURACY]
        found += [finding for check in checks for finding in check(facts)] if facts.train else [_nothing_yet(facts)]
    return sorted([*found, *_not_examined(facts)], key=lambda finding: SEVERITIES.index(finding.severity))


def _nothing_yet(facts: Facts) -> Finding:
    return Finding("training", "not examined", "there is no row of training yet", ("python -m jaxcnn.main …",))


def _not_examined(facts: Facts) -> Iterator[Finding]:
    def missing(name: str, what: str, *commands: str) -> Finding:
        return Finding(name, "not examined", what, commands)

    if not facts.validation:
        yield missing(
            "over- and underfitting, leakage by accuracy, length",
            "there is no row of validation",
            *(() if facts.option("data.validation_fraction") else ("--config.data.validation_fraction=0.1",)),
        )
    elif facts.train and not facts.has_accuracy:
        yield missing("underfitting, leakage by accuracy, length", "nothing measures accuracy in this run")
    if facts.summary is None:
        yield missing(
            "whether it trained long enough", "the run has not finished", "the command that began it goes on with it"
        )
    if not facts.telemetry:
        yield missing(
            "gradients, dead channels, sizes of updates",
            "there is no telemetry.jsonl",
            "--config.telemetry.every_steps=100",
        )
    if facts.predictions is None and facts.data["class_names"]:
        yield missing(
            "class collapse, label noise",
            "there is no predictions.csv",
            f"python -m jaxcnn.evaluate --workdir {facts.workdir}",
        )
    if facts.data_check is None and facts.has_images:
        what = "copies between splits" if facts.data.get("class_counts") else "copies between splits, class imbalance"
        yield missing(
            what,
            "there is no data_check.json",
            f"python -m jaxcnn.data check {facts.data['name']} --json {facts.workdir}/data_check.json",
        )


# ---- what training and validation say


def _not_finite(facts: Facts) -> Iterator[Finding]:
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
        yield Finding("not finite", "error", sentence, (_lower_rate(facts), "--config.optimizer.clip_norm=1"))


def _diverged(facts: Facts) -> Iterator[Finding]:
    losses = _losses(facts)
    least = int(losses.argmin())
    if losses[least] > 0 and losses[-1] >= DIVERGED * losses[least] and losses[-1] >= losses[0] / 2:
        yield Finding(
            "diverged",
            "error",
            f"training loss ends at {losses[-1]:.3g}, {losses[-1] / losses[least]:.1f} times its least, "
            f"{losses[least]:.3g} at step {facts.train[least]['step']:,}",
            (_lower_rate(facts), "--config.optimizer.clip_norm=1", _find_rate(facts)),
        )


def _spikes(facts: Facts) -> Iterator[Finding]:
    losses = _losses(facts)
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
                *_unset(facts, "optimizer.clip_norm=1"),
                *_unset(facts, "schedule.warmup_epochs=1"),
                _lower_rate(facts),
                _find_rate(facts),
            ),
        )


def _slow(facts: Facts) -> Iterator[Finding]:
    losses = _losses(facts)
    if len(losses) < SLOW_ROWS:
        return
    falling, fall = float((np.diff(losses) < 0).mean()), float(1 - losses[-1] / losses[0])
    if falling >= SLOW_SHARE and 0 < fall < SLOW_FALL and facts.train[-1].get("accuracy", 0) < 1 - LOSS_FLOOR:
        yield Finding(
            "learning rate too small",
            "warning",
            f"training loss falls in {falling:.0%} of {len(losses)} rows, and yet by {fall:.1%} in all, from "
            f"{losses[0]:.3g} to {losses[-1]:.3g}",
            (_rate(facts, 10), _find_rate(facts)),
        )


def _overfitting(facts: Facts) -> Iterator[Finding]:
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
                *_unset(facts, "augment.flip=true", "augment.crop_padding=4", "augment.randaugment_ops=2"),
                *_unset(facts, "optimizer.weight_decay=5e-4", "model.dropout_rate=0.2", "loss.label_smoothing=0.1"),
                *_unset(facts, "early_stop.patience_evaluations=10"),
            ),
        )


def _underfitting(facts: Facts) -> Iterator[Finding]:
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
            (_find_rate(facts), _lower_rate(facts), "--config.schedule.name=constant"),
        )
    elif (skill := (max(train, validation) - guessing) / (1 - guessing)) < UNDERFIT_SKILL:
        yield Finding(
            "underfitting",
            "warning",
            f"accuracy is {train:.1%} in training and at best {validation:.1%} in validation: {skill:.0%} of the way "
            "from guessing to all right",
            (
                _longer(facts),
                _find_rate(facts),
                "--config.model.name=resnet18" if facts.has_images else "--config.model.hidden='(512,512)'",
                *_strong(facts),
            ),
        )


def _leak_by_accuracy(facts: Facts) -> Iterator[Finding]:
    count = len(facts.validation)
    if count < LEAK_EVALUATIONS:
        return
    train, before = (facts.trained("accuracy", count - back) for back in (1, 2))
    validation = facts.validation[-1]["accuracy"]
    regularised = bool(_strong(facts)) or facts.option("model.dropout_rate") is None
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


def _still_improving(facts: Facts) -> Iterator[Finding]:
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
            (f"{_longer(facts)} (in a new --workdir)",),
        )


def _stopped_improving(facts: Facts) -> Iterator[Finding]:
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


def _small_validation(facts: Facts) -> Iterator[Finding]:
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


def _waiting(facts: Facts) -> Iterator[Finding]:
    rows = [row for row in facts.timing if all(map(is_finite, row.values()))]
    if sum(row["seconds"] for row in rows) < WAITING_SECONDS:
        return
    data, devices = (float(np.median([row[name] for row in rows])) for name in ("data_wait", "device_wait"))
    if data > WAITING and devices < WAITING_DEVICES:
        yield Finding(
            "devices wait for data",
            "note",
            f"the host spends {data:.0%} of training waiting for data, in the median",
            (*_unset(facts, "data.resident=true"), "--config.data.prefetch_batches=16"),
        )


# ---- what telemetry says


def _gradients(facts: Facts) -> Iterator[Finding]:
    rows = facts.telemetry or ()
    norms = np.array([row["gradient_norm"] for row in rows], float)  # None becomes NaN
    remedies = (*_unset(facts, "optimizer.clip_norm=1"), _lower_rate(facts))
    if not np.isfinite(norms).all():
        step = rows[int(np.flatnonzero(~np.isfinite(norms))[0])]["step"]
        yield Finding("exploding gradients", "error", f"the gradient is not finite at step {step:,}", remedies)
    elif len(norms) > SPIKE_ROWS and norms.max() >= EXPLODING * np.median(norms) > 0:
        step, times = rows[int(norms.argmax())]["step"], norms.max() / np.median(norms)
        yield Finding(
            "exploding gradients",
            "warning",
            f"the gradient's norm is {norms.max():.3g} at step {step:,}, {times:,.0f} times its median",
            remedies,
        )
    shares: dict[str, list[float]] = {}
    for row in rows:
        layers = {name: layer["gradient_norm"] for name, layer in row["layers"].items()}
        largest = max(layers.values(), default=0) if all(map(is_finite, layers.values())) else 0
        if largest > 0:
            for name, norm in layers.items():
                shares.setdefault(name, []).append(norm / largest)
    # exactly 0 in every record: frozen, finetune.py's
    faint = {name: float(np.median(values)) for name, values in shares.items() if max(values) > 0}
    faint = {name: share for name, share in faint.items() if share < VANISHING}
    if faint:
        least = min(faint, key=lambda name: faint[name])
        yield Finding(
            "vanishing gradients",
            "warning",
            f"in {len(faint)} of {len(shares)} layers the gradient's norm is below {VANISHING:g} of the largest "
            f"layer's, in the median; the least is {faint[least]:.1g}, in {least}",
            (
                *_unset(facts, "model.norm=batch"),
                "--config.model.initializer=he_normal",
                "--config.model.activation=relu",
            ),
        )


def _updates(facts: Facts) -> Iterator[Finding]:
    rates = [row["learning_rate"] for row in facts.train]
    steps = [row["step"] for row in facts.train]
    fast = [
        row
        for row in facts.telemetry or ()
        if rates[min(int(np.searchsorted(steps, row["step"])), len(rates) - 1)] >= max(rates) / 2
    ]
    ratios = [layer["update_ratio"] for row in fast for layer in row["layers"].values()]
    ratios = [ratio for ratio in ratios if is_finite(ratio) and ratio > 0]  # null too where weights are 0
    if not ratios:
        return
    ratio = float(np.median(ratios))
    words = (
        f"where the learning rate is high, a step changes a layer's weights by {ratio:.1g} of their norm, in the median"
    )
    if ratio > UPDATE_RATIO_HIGH:
        yield Finding("learning rate at the edge", "warning", words, (_lower_rate(facts), _find_rate(facts)))
    elif ratio < UPDATE_RATIO_LOW:
        yield Finding("learning rate too small", "warning", words, (_rate(facts, 10), _find_rate(facts)))


def _dead(facts: Facts) -> Iterator[Finding]:
    if not facts.telemetry:
        return
    row = facts.telemetry[-1]
    dead = {name: each["dead"] for name, each in row.get("activations", {}).items() if is_finite(each["dead"])}
    dead = {name: share for name, share in dead.items() if share >= DEAD}
    if dead:
        worst = max(dead, key=lambda name: dead[name])
        yield Finding(
            "dead channels",
            "warning",
            f"at step {row['step']:,} {dead[worst]:.0%} of the channels of {worst} have no positive value in a batch"
            + (f", and at least {DEAD:.0%} in {len(dead) - 1} others" if len(dead) > 1 else ""),
            (_lower_rate(facts), "--config.model.activation=leaky_relu", *_unset(facts, "schedule.warmup_epochs=1")),
        )


# ---- what predictions and data say


def _collapse(facts: Facts) -> Iterator[Finding]:
    if facts.predictions is None:
        return
    labels, counts = np.unique(np.asarray(facts.predictions.labels, str), return_counts=True)
    predicted, times = np.unique(np.asarray(facts.predictions.predictions, str), return_counts=True)
    never = [
        str(label)
        for label, count in zip(labels, counts, strict=True)
        if count >= NEVER_PREDICTED_EXAMPLES and label not in predicted
    ]
    if never:
        most = int(times.argmax())
        yield Finding(
            "class collapse",
            "error" if len(never) > len(labels) / 2 else "warning",
            f"{len(never)} of {len(labels)} classes are never predicted ({_listed(never)}); "
            f"{times[most] / sum(times):.0%} of the predictions are {predicted[most]}",
            (*_balance(facts), _find_rate(facts)),
        )


def _label_noise(facts: Facts) -> Iterator[Finding]:
    if facts.predictions is None:
        return
    labels, predictions = (np.asarray(each, str) for each in (facts.predictions.labels, facts.predictions.predictions))
    confidences = np.asarray(facts.predictions.confidences, float)
    sure = confidences >= CONFIDENT
    wrong = np.flatnonzero(sure & (labels != predictions))
    share, admitted = len(wrong) / max(1, sure.sum()), 1 - CONFIDENT
    error = math.sqrt(admitted * CONFIDENT / max(1, sure.sum()))
    if len(wrong) >= NUM_CONFIDENT_ERRORS and share > admitted + STANDARD_ERRORS * error:
        order = wrong[np.argsort(-confidences[wrong], kind="stable")]
        named = [f"{facts.predictions.identifiers[n]} ({labels[n]}, predicted {predictions[n]})" for n in order]
        yield Finding(
            "labels to look at",
            "note",
            f"{len(wrong):,} of {sure.sum():,} predictions of confidence >= {CONFIDENT} contradict the label, "
            f"{share:.1%} where 1 % may; the surest: {_listed(named)}",
            ("--config.data.exclude=FILE with their identifiers", *_unset(facts, "loss.label_smoothing=0.1")),
        )


def _imbalance(facts: Facts) -> Iterator[Finding]:
    counts = (facts.data.get("class_counts") or {}).get("train")
    if not counts:
        return
    small, large = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if not counts[small]:
        empty = [name for name, count in counts.items() if not count]
        yield Finding(
            "class without examples",
            "error",
            f"{len(empty)} of {len(counts)} classes have no example in train: {_listed(empty)}",
            ("--config.data.classes=NAMES of the others", "--config.data.stratify=true"),
        )
    elif counts[large] >= IMBALANCE * counts[small] and len(_balance(facts)) == 2:
        yield Finding(
            "class imbalance",
            "warning",
            f"train has {counts[large]:,} examples of {large} and {counts[small]:,} of {small}, "
            f"{counts[large] / counts[small]:.0f} times fewer",
            _balance(facts),
        )


def _shared(facts: Facts) -> Iterator[Finding]:
    for (one, other), count in (facts.shared or {}).items():
        if count:
            trained = "train" in (one, other)
            yield Finding(
                "splits share examples",
                "error" if trained else "warning",
                f"{one} and {other} share {count:,} of {facts.data['num_examples'][other]:,} examples: {other} is no "
                f"measure apart from what {'was learned' if trained else 'chose the weights'}",
                ("--config.data.validation_split=none", "--config.data.test_split=none"),
            )


def _copies(facts: Facts) -> Iterator[Finding]:
    kinds = (facts.data_check or {}).get("kinds", {})
    for kind, severity in (("leak", "error"), ("near_leak", "warning"), ("imbalance", "note")):
        count = kinds.get(kind, {}).get("count", 0)
        if count and not (kind == "imbalance" and (facts.data.get("class_counts") or len(_balance(facts)) < 2)):
            remedy = f"python -m jaxcnn.data check {facts.data['name']} --write_clean FILE"
            yield Finding(
                "class imbalance" if kind == "imbalance" else "copies between splits",
                severity,
                f"jaxcnn.data check found, {count:,} times: {kinds[kind]['title']}",
                _balance(facts) if kind == "imbalance" else (remedy, "--config.data.exclude=FILE"),
            )


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _diverged, _spikes, _slow, _overfitting, _underfitting, _leak_by_accuracy, _still_improving,
    _stopped_improving, _small_validation, _waiting, _gradients, _updates, _dead, _collapse, _label_noise, _imbalance,
    _shared, _copies,
)  # fmt: skip
_OF_ACCURACY = (_underfitting, _leak_by_accuracy, _still_improving, _stopped_improving, _small_validation)


# ---- remedies


def _losses(facts: Facts) -> np.ndarray:
    """Of training, by row."""
    return np.array([row["loss"] for row in facts.train], float)


def _unset(facts: Facts, *options: str) -> tuple[str, ...]:
    """Of `a.b=value`, those that the run has not on already, as they are written on the command line."""
    off = (None, 0, False, "none")
    usable = [each for each in options if facts.has_images or not each.startswith("augment.")]
    return tuple(f"--config.{each}" for each in usable if facts.option(each.partition("=")[0]) in off)


def _rate(facts: Facts, factor: float) -> str:
    return f"--config.optimizer.learning_rate={factor * facts.option('optimizer.learning_rate'):.2g}"


def _lower_rate(facts: Facts) -> str:
    return _rate(facts, 1 / 3)


def _find_rate(facts: Facts) -> str:
    return "python -m jaxcnn.lr_find --config EXPERIMENT"


def _longer(facts: Facts) -> str:
    if facts.option("num_steps"):
        return f"--config.num_steps={2 * facts.option('num_steps')}"
    return f"--config.num_epochs={2 * facts.option('num_epochs'):g}"


def _balance(facts: Facts) -> tuple[str, ...]:
    """The two ways to balance classes that are not on."""
    uniform = facts.option("data.sampling") in (None, "uniform")
    return (
        *(() if facts.option("loss.class_weight_values") else _unset(facts, "loss.class_weights=balanced")),
        *(("--config.data.sampling=balanced",) if uniform else ()),
    )


def _strong(facts: Facts) -> tuple[str, ...]:
    """What makes training harder than validation, and is on: how to turn it off."""
    pieces = {
        "augment.mixup": "0", "augment.cutmix": "0", "augment.cutout": "0", "augment.random_erasing": "0",
        "augment.randaugment_ops": "0", "augment.trivial_augment": "false", "augment.random_resized_crop": "false",
        "model.dropout_rate": "0", "model.stochastic_depth": "0",
    }  # fmt: skip
    return tuple(f"--config.{name}={value}" for name, value in pieces.items() if facts.option(name))


def _listed(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
