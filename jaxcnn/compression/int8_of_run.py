"""The int8 file of a run, checked on the run's own images: what it loses, how large it is, how fast it runs here.

Calibrated on images of train alone; judged on test; which layer loses most is told by validation.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from jaxcnn.compression import int8
from jaxcnn.data import Split
from jaxcnn.data.records import classes_of
from jaxcnn.results.members import Measured
from jaxcnn.tasks.classification.confidence import bootstrap
from jaxcnn.training.build import is_resident
from jaxcnn.training.feed import Feed, Progress, ResidentFeed, StreamingFeed
from jaxcnn.training.parallel import make_parallel

CALIBRATION_BATCH, EVALUATION_BATCH = 16, 64
LATENCY: dict[str, Any] = {"rounds": 7, "seconds": 0.2}  # of each side in a round
SENSITIVITY_IMAGES = 1000  # of validation, at most: each layer needs a pass over them
Prepare = Callable[[np.ndarray], np.ndarray]  # images uint8 [n, H, W, C], as stored -> inputs of the file
Interval = tuple[float, float]  # 95 %, by the bootstrap


def layer_names(function: Callable[[Any, Any], Any], variables: Any, example: Any) -> list[str]:
    """The layers of a network that have weights, as its modules name them, in the order in which inputs meet them.

    Args:
      function: (variables, inputs [batch, …]) -> outputs, in plain operations: layers/plain.py.
      variables: of the network.
      example: shape and dtype of one example's inputs.
    """
    inputs = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    closed = jax.make_jaxpr(function)(variables, inputs)
    known = set(closed.jaxpr.invars[: len(jax.tree.leaves(variables))]) | set(closed.jaxpr.constvars)
    found: list[str] = []
    _visit(closed.jaxpr, known, "", found)
    return [f"{name} {found[:number].count(name) + 1}" if found.count(name) > 1 else name
            for number, name in enumerate(found)]  # fmt: skip


def _visit(jaxpr: Any, known: set[Any], scope: str, found: list[str]) -> None:
    """Adds the convolutions and products of something known and something that is not; `known` are variables."""
    is_known = lambda atom: hasattr(atom, "val") or atom in known
    for equation in jaxpr.eqns:
        where = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        inner = next((each for each in equation.params.values() if hasattr(each, "eqns")), None)
        if all(map(is_known, equation.invars)):
            known |= set(equation.outvars)
        elif inner is not None:
            body = getattr(inner, "jaxpr", inner)
            _visit(body, known | {mine for mine, given in zip(body.invars, equation.invars, strict=True)
                                  if is_known(given)} | set(body.constvars), where, found)  # fmt: skip
        elif equation.primitive.name in ("conv_general_dilated", "dot_general") and any(map(is_known, equation.invars)):
            modules = [each for each in where.split("/") if "->" not in each]  # the subscripts of an einsum
            found.append("/".join(modules[1:] or modules))


@dataclass(frozen=True)
class Checked:
    """What an int8 file is worth beside the float one."""

    split: str
    num_examples: int
    accuracy: dict[str, float]  # of `float` and `int8`
    intervals: dict[str, Interval]
    lost: float  # accuracy, float less int8, of the same examples
    lost_interval: Interval
    same: float  # share of the same predictions
    bytes: dict[str, int]
    latency: tuple[int8.Latency, ...]


@dataclass(frozen=True)
class Loss:
    """What is lost where one layer alone is quantised."""

    layer: int8.Layer
    lost: float  # accuracy
    same: float  # share of the same predictions
    signal_to_noise: float  # of the logits, decibels: 10 log10 of sum(float^2) / sum((float - int8)^2)


def batches_of(
    measured: Measured, split: str, *, size: int, progress: Progress, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images uint8 [n, H, W, C], classes int [n]) of a split, in its order, those that are damaged left out.

    `limit`: at most so many, drawn without replacement by a seed of their own.
    """
    examples = measured.source.splits[split]
    if limit is not None and limit < len(examples):
        drawn = np.sort(np.random.default_rng(0).choice(len(examples), limit, replace=False))
        examples = Split(examples.records, examples.indices[drawn])
    # Not under the name of train, where what takes a damaged record's place would be counted.
    source = replace(measured.source, splits={"train": examples, "measured": examples})
    kind = ResidentFeed if is_resident(measured.config, source) else StreamingFeed
    feed: Feed = kind(measured.config, source, make_parallel("jit", num_devices=1), progress)
    try:
        for data, inputs in feed.evaluation("measured", min(size, len(examples))):
            batch = feed.fetch(data, inputs)
            mask = np.asarray(batch["mask"])
            yield np.asarray(batch["image"])[mask], classes_of(np.asarray(batch["label"]))[mask]
    finally:
        feed.close()


def logits_of(
    files: Sequence[Path], batches: Iterable[tuple[np.ndarray, np.ndarray]], prepare: Prepare
) -> tuple[list[np.ndarray], np.ndarray]:
    """(logits float32 [n, K] of each file, classes int [n]), in one pass."""
    sessions = [int8.open_session(file) for file in files]
    found: list[list[np.ndarray]] = [[] for _ in sessions]
    labels = []
    for images, classes in batches:
        inputs = prepare(images)
        labels.append(classes)
        for rows, session in zip(found, sessions, strict=True):
            rows.append(int8.run(session, inputs))
    return [np.concatenate(rows) for rows in found], np.concatenate(labels)


def check(
    before: Path, after: Path, measured: Measured, prepare: Prepare, *, progress: Progress, resamples: int = 1000
) -> Checked:
    """Compares a float file and its int8 one on the measured split, and on this CPU."""
    batches = batches_of(measured, measured.split, size=EVALUATION_BATCH, progress=progress)
    logits, labels = logits_of((before, after), batches, prepare)
    predicted = [each.argmax(axis=1) for each in logits]
    right = [each == labels for each in predicted]
    zeros = np.zeros(len(labels))
    intervals = [
        bootstrap(
            labels,
            each,
            zeros.astype(int),
            zeros,
            {"lost": right[0].astype(float) - right[1]},
            num_classes=logits[0].shape[1],
            resamples=resamples,
        )
        for each in predicted
    ]
    one = next(batches_of(measured, measured.split, size=1, progress=progress, limit=1))[0]
    return Checked(
        split=measured.split,
        num_examples=len(labels),
        accuracy={name: float(each.mean()) for name, each in zip(("float", "int8"), right, strict=True)},
        intervals={name: each["accuracy"] for name, each in zip(("float", "int8"), intervals, strict=True)},
        lost=float(right[0].mean() - right[1].mean()),
        lost_interval=intervals[0]["lost"],
        same=float((predicted[0] == predicted[1]).mean()),
        bytes={"float": os.path.getsize(before), "int8": os.path.getsize(after)},
        latency=latencies(before, after, prepare(one)),
    )


def latencies(before: Path, after: Path, one: np.ndarray) -> tuple[int8.Latency, ...]:
    """How long both files take on this CPU, on one core and on all, for one input [1, …] and for eight of it."""
    ways = [(threads, size) for threads in sorted({1, len(os.sched_getaffinity(0))}) for size in (1, 8)]
    return tuple(
        int8.latency(before, after, np.repeat(one, size, axis=0), threads=threads, **LATENCY) for threads, size in ways
    )


def sensitivity(
    before: Path, ranges: int8.Ranges, measured: Measured, prepare: Prepare, *, weight_bits: int, progress: Progress
) -> list[Loss]:
    """What quantising each layer alone loses, the worst first: on validation, else on the measured split."""
    split = "validation" if "validation" in measured.source.splits else measured.split
    batches = list(batches_of(measured, split, size=EVALUATION_BATCH, progress=progress, limit=SENSITIVITY_IMAGES))
    ((reference,), labels) = logits_of([before], batches, prepare)
    right = (reference.argmax(axis=1) == labels).mean()
    found, of_file = [], int8.layers(before)
    with tempfile.TemporaryDirectory() as folder:
        for number, layer in enumerate(of_file, start=1):
            file = Path(folder) / "one.onnx"
            int8.quantise(before, file, ranges, only=[layer.name], weight_bits=weight_bits)
            ((logits,), _) = logits_of([file], batches, prepare)
            noise = np.square(reference - logits).sum(dtype=np.float64)
            found.append(
                Loss(
                    layer,
                    lost=float(right - (logits.argmax(axis=1) == labels).mean()),
                    same=float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
                    signal_to_noise=float(
                        10 * np.log10(np.square(reference).sum(dtype=np.float64) / max(noise, 1e-30))
                    ),
                )
            )
            progress("quantising each layer alone", number, len(of_file))
    return sorted(found, key=lambda each: each.signal_to_noise)


# ---- for people


def tables_of(checked: Checked) -> tuple[Table, Table]:
    """What the files are worth, and how fast they run here."""
    worth = Table(title=f"{checked.num_examples:,} images of {checked.split}", title_justify="left")
    for name in ("", "accuracy", "95 %", "same predictions", "MB"):
        worth.add_column(name, justify="right" if name else "left")
    for name, same in (("float", ""), ("int8", f"{100 * checked.same:.2f} %")):
        size = f"{checked.bytes[name] / 1e6:.3f}"
        worth.add_row(name, f"{100 * checked.accuracy[name]:.2f} %", _interval(checked.intervals[name]), same, size)
    smaller = f"{checked.bytes['float'] / checked.bytes['int8']:.2f} x smaller"
    low, high = checked.lost_interval
    worth.add_row("change", f"{_gained(checked.lost):+.2f}", _interval((0 - high, 0 - low)), "", smaller)
    return worth, speed_table(checked.latency)


def speed_table(latency: Sequence[int8.Latency]) -> Table:
    """A row a number of threads and of images."""
    table = Table(title="milliseconds a call, in turn", title_justify="left")
    for name in ("threads", "batch", "float", "int8", "float / int8"):
        table.add_column(name, justify="right")
    for each in latency:
        ratio = f"{each.ratio:.2f} ({each.lowest:.2f} … {each.highest:.2f})"
        table.add_row(str(each.threads), str(each.batch_size), f"{each.before:.3g}", f"{each.after:.3g}", ratio)
    return table


def sensitivity_table(losses: Sequence[Loss]) -> Table:
    """A row a layer, the one whose logits are furthest from the float network's first."""
    table = Table(title="each layer quantised alone", title_justify="left")
    for name in ("layer", "kind", "weights", "accuracy", "same", "signal / noise"):
        table.add_column(name, justify="left" if name in ("layer", "kind") else "right", overflow="fold")
    for each in losses:
        table.add_row(
            each.layer.name,
            each.layer.kind,
            f"{each.layer.num_weights:,}",
            f"{_gained(each.lost):+.2f}",
            f"{100 * each.same:.2f} %",
            f"{each.signal_to_noise:.1f} dB",
        )
    return table


def _interval(interval: Interval) -> str:
    return " … ".join(f"{100 * each:.2f}" for each in interval)


def _gained(lost: float) -> float:
    """In points; never -0."""
    return 100 * (0 - lost)


def facts_of(checked: Checked, losses: Sequence[Loss] | None) -> dict[str, Any]:
    """All of it as plain data."""
    content: dict[str, Any] = {**vars(checked), "latency": [vars(each) for each in checked.latency]}
    if losses is not None:
        content["sensitivity"] = [{**vars(each), "layer": vars(each.layer)} for each in losses]
    return content
