"""The int8 file of weights without a run, beside the float one: on images without labels, how often both agree."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxcnn.compression import int8, int8_of_run


@dataclass(frozen=True)
class Agreement:
    """What an int8 file answers beside the float one."""

    num_images: int
    same: float  # share of images of which both find the same class the likeliest
    difference: float  # of the logits, the largest
    largest: float  # logit of the float file
    bytes: dict[str, int]  # of `float` and `int8`
    latency: tuple[int8.Latency, ...]


def compare(before: Path, after: Path, images: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray]) -> Agreement:
    """Compares a float file and its int8 one on images, uint8 [n, H, W, C], of which `prepare` makes their inputs."""
    size = int8_of_run.EVALUATION_BATCH
    unknown = np.zeros(len(images), int)
    batches = ((images[at : at + size], unknown[at : at + size]) for at in range(0, len(images), size))
    (ours, theirs), _ = int8_of_run.logits_of((before, after), batches, prepare)
    return Agreement(
        num_images=len(images),
        same=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        difference=float(np.abs(ours - theirs).max()),
        largest=float(np.abs(ours).max()),
        bytes={"float": os.path.getsize(before), "int8": os.path.getsize(after)},
        latency=int8_of_run.latencies(before, after, prepare(images[:1])),
    )


def tables_of(agreement: Agreement) -> tuple[Table, Table]:
    """How far the files agree, and how fast they run here."""
    worth = Table(title=f"{agreement.num_images:,} images", title_justify="left")
    for name in ("", "same predictions", "largest difference", "largest logit", "MB"):
        worth.add_column(name, justify="right" if name else "left")
    size = {name: f"{count / 1e6:.3f}" for name, count in agreement.bytes.items()}
    same = f"{100 * agreement.same:.2f} %"
    worth.add_row("float", "", "", f"{agreement.largest:.2f}", size["float"])
    worth.add_row("int8", same, f"{agreement.difference:.2f}", "", size["int8"])
    return worth, int8_of_run.speed_table(agreement.latency)


def facts_of(agreement: Agreement) -> dict[str, Any]:
    """All of it as plain data."""
    return {**vars(agreement), "latency": [vars(each) for each in agreement.latency]}
