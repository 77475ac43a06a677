"""Whether an export computes what the run's network does: on its own test images, on others, or on random ones."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from jaxcnn.config import Config, DataConfig, from_dict
from jaxcnn.config.choices import SOURCES, choose
from jaxcnn.data import Source
from jaxcnn.data.given import each_image, prepared
from jaxcnn.data.records import Split
from jaxcnn.data.sources import open_stored
from jaxcnn.errors import RunError, UserError
from jaxcnn.export.network import Network
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.training.build import is_resident
from jaxcnn.training.evaluation import collect
from jaxcnn.training.feed import Feed, Progress, ResidentFeed, StreamingFeed
from jaxcnn.training.parallel import make_parallel

# Of the largest logit. In float32 a hundred layers leave some 1e-5 of it; a wrong layer leaves the whole.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Images:
    """Images to compare on."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    labels: np.ndarray | None  # as stored, [n, …]; random images have none
    what: str  # in lines for people
    random: bool = False


@dataclass(frozen=True)
class Parity:
    """What two computations of the same logits [n, K] differ by."""

    difference: float  # the largest
    largest: float  # logit
    same: float  # the share of predictions that are the same
    count: int  # of images
    what: str  # the images

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= TOLERANCE * max(self.largest, 1e-6)

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} of logits up to {self.largest:.3g}, "
            f"{100 * self.same:.2f} % same predictions, on {self.count:,} {self.what}"
        )


def compare(ours: np.ndarray, theirs: np.ndarray, *, task: str, what: str) -> Parity:
    """Compares logits [n, K]. Predictions are the largest logit, or, of several labels, each that is above zero.

    Raises RunError where theirs have another shape, or are not finite.
    """
    if ours.shape != theirs.shape:
        raise RunError(f"the export answers with {theirs.shape}, the run with {ours.shape}")
    if not np.isfinite(ours).all():
        raise RunError("the run's own outputs are not finite; it has diverged; choose an earlier --step")
    if not np.isfinite(theirs).all():
        raise RunError("the export's outputs are not finite, the run's are")
    decided = [logits >= 0 if task == "multilabel" else logits.argmax(axis=1) for logits in (ours, theirs)]
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    return Parity(difference, float(np.abs(ours).max()), float((decided[0] == decided[1]).mean()), len(ours), what)


def checked(network: Network, run: Callable[[np.ndarray], np.ndarray], images: Images) -> Parity:
    """The parity of a runtime's logits. Raises RunError where it does not hold."""
    inputs = network.given(images.images)
    parity = compare(network.logits(inputs), run(inputs), task=network.facts["task"], what=images.what)
    if not parity.holds:
        raise RunError(f"the export is not the run's network, and was not written: {parity}")
    return parity


def images_of(workdir: str, count: int, *, data_dir: str | None = None, progress: Progress | None = None) -> Images:
    """So many test images of a run, or all; where its data are not at hand, random ones.

    Raises RunError where the data are damaged, UserError where there is no run.
    """
    folder = workdir_lib.resolve(workdir)
    saved = workdir_lib.read_config(folder)
    config: Any = from_dict(saved["config"])
    config.platform, config.num_devices = None, 1
    config.data.exclude = None  # what is left of it stands in the run's splits
    config.data.dir = data_dir or config.data.dir
    kind: Any = choose("task", config.task).load()
    try:
        source = kind.reopen(config, saved["data"], progress=progress, kept=workdir_lib.read_splits(folder))
        facts = {"fingerprint": source.fingerprint, "splits": source.splits_digest}
        workdir_lib.check_data(folder, saved["data"], facts)
    except UserError as error:
        return random_images(count, saved["data"]["image_shape"], f"the run's are not at hand: {error}")
    return _first(config, source, "test", count, progress)


def images_at(
    path: str,
    count: int,
    *,
    network: Network,
    split: str = "test",
    data_dir: str | None = None,
    progress: Progress | None = None,
) -> Images:
    """So many images of a file, a folder or a data set, prepared as the network's were. Raises UserError, RunError.

    `split`: of a data set, which it is where there is one; else its first.
    """
    if path.partition(":")[0] in SOURCES and not os.path.lexists(path):
        return _of_set(path, split, count, network, data_dir, progress)
    given = itertools.islice(each_image(path), count)
    images = []
    for name, image in prepared(given, image_shape=network.image_shape, ahead=32, resized=network.facts["resized"]):
        if isinstance(image, ValueError):
            raise RunError(f"{name} cannot be read: {image}")
        images.append(image)
    return Images(np.stack(images), None, f"images of {PurePath(path).name}")


def _of_set(
    name: str, split: str, count: int, network: Network, data_dir: str | None, progress: Progress | None
) -> Images:
    shape = network.image_shape
    data = DataConfig(name=name, dir=data_dir, channels=shape[2] if shape[2] in (1, 3) else None)
    stored = open_stored(data, progress=progress, partial=True)
    split = split if split in stored.splits else next(iter(stored.splits))
    source = Source(name, stored.class_names, shape, stored.splits, stored.fingerprint)
    images = _first(Config(data=data, num_devices=1), source, split, count, progress)
    return replace(images, what=f"images of {name}, {split}")


def random_images(count: int, image_shape: Sequence[int], why: str) -> Images:
    """Images of noise, where there are no others."""
    images = np.random.default_rng(0).integers(0, 256, (count, *image_shape), np.uint8)
    return Images(images, None, f"random images ({why})", random=True)


def _first(config: Any, source: Source, split: str, count: int, progress: Progress | None) -> Images:
    whole = source.splits[split]
    places = np.linspace(0, len(whole) - 1, min(count, len(whole))).astype(int)  # spread: sets may be sorted by class
    examples = Split(whole.records, whole.indices[places])
    only = replace(source, splits={"train": examples, "measured": examples})
    kind = ResidentFeed if is_resident(config, only) else StreamingFeed
    parallel = make_parallel("jit", num_devices=1)
    feed: Feed = kind(config, only, parallel, progress or (lambda *_: None))
    try:
        (images,), labels, _ = collect(
            [(lambda _, batch: batch["image"], {})],
            feed.evaluation("measured", min(len(examples), 64)),
            targets=lambda batch: batch["label"],
            fetch=feed.fetch,
            parallel=parallel,
            num_examples=lambda: feed.num_counted("measured"),
        )
    finally:
        feed.close()
    return Images(np.asarray(images), np.asarray(labels), "test images of the run")
