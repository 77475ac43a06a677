"""Batches decoded as they are needed, by Grain, for sets that are too large to keep decoded.

A batch depends on (seed, step) alone, however many processes decode it. Yields numpy uint8 images; augmentation other
than the random resized crop, and normalising, are for the device.
"""

import gc
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from jaxcnn.config import AugmentConfig
from jaxcnn.data.decoding import fit_image, hold_back_threads, resize_image
from jaxcnn.data.order import AUGMENT_STREAM, DrawnGroups, batch_examples
from jaxcnn.data.records import (
    DamagedRecordError,
    Example,
    ImageShape,
    Split,
    example_of,
    read_or_error,
)
from jaxcnn.data.resident import channel_counts, statistics_of_counts
from jaxcnn.errors import RunError, UserError
from jaxcnn.terminal import short_line

Batch = dict[str, np.ndarray]

_ENDLESS = 1 << 62
_STATISTICS_EXAMPLES = 2048
_MAX_WORKERS = 16
_THREADS_SUFFICE = 4  # cores; what holds Python's lock is a tenth of decoding, so some more may do as well
_DAMAGED_IN_A_ROW = 100  # that are stepped over before the set itself is taken for damaged
_PATIENCE = 60.0  # seconds without a batch between two warnings

_log = logging.getLogger(__name__)


class Batches(Iterator[Batch]):
    """An iterator over batches that owns the processes or threads that decode them. They end with it, or on close()."""

    def __init__(self, batches: "_TrainBatches | _EvaluationBatches", num_workers: int, prefetch_batches: int) -> None:
        """With 0 workers, threads: one for each core that this process may use."""
        import grain  # takes a second, and a run whose data is resident never needs it
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, also where no command line was parsed
            flags.FLAGS.mark_as_parsed()
        # An item of Grain's is a whole batch: as items of one record each, CIFAR-10 came at a tenth of the speed.
        dataset = grain.MapDataset.source(batches)
        if num_workers > 0:
            options = grain.MultiprocessingOptions(num_workers, math.ceil(prefetch_batches / num_workers))
            read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            stream = dataset.to_iter_dataset(read_options).mp_prefetch(options, worker_init_fn=_prepare_worker)
        else:
            hold_back_threads()
            num_threads = min(num_cores(), _MAX_WORKERS)
            stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads, max(num_threads, prefetch_batches)))
        self._name, self._shared = batches.split.records.name, num_workers > 0
        self.damaged: set[str] = set()  # what is wrong with each record that was skipped so far
        iterator = iter(stream)
        iterator.start_prefetch()  # decoding goes on while the first step compiles
        self._held = [iterator]  # in a list, so that closing lets go of it: Grain complains of one left at exit
        self._watch = _Watch(self._name)
        self._finalizer = weakref.finalize(self, _close, self._held, self._watch)

    def __next__(self) -> Batch:
        if not self._held:
            raise StopIteration
        try:
            with self._watch:
                stored = next(self._held[0])
            # Copied out of the shared memory that processes answer in, which is given back at once: it is scarce.
            batch = {key: np.array(value, copy=self._shared or None) for key, value in stored.items()}
            self.damaged.update(batch.pop("damaged", np.empty(0, str)).tolist())
            return batch
        except (StopIteration, RunError):
            self.close()
            raise
        except Exception as error:
            self.close()
            raise RunError(
                f"{self._name}: decoding failed ({short_line(error)}); exit code -9 means out of memory, -7 that "
                "/dev/shm is full: lower data.num_workers (0: threads, which need no /dev/shm) or data.prefetch_batches"
            ) from error

    def close(self) -> None:
        """Ends decoding and waits for its processes; from then on there are no more batches."""
        self._finalizer()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    image_shape: ImageShape | None,
    augment: AugmentConfig,
    num_workers: int,
    prefetch_batches: int,
    skip_damaged: bool = False,
    groups: DrawnGroups | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless batches from step `start_step` on: image uint8 [B, H, W, C], label int32 [B] or soft, float32 [B, K].

    Of records that are no images (image_shape is None), their own arrays [B, ...].

    With several hosts B is the host's contiguous share of the global `batch_size`. With `skip_damaged`, the place of a
    damaged example is taken by the next in the split that is not, in every epoch. `groups`: sampling is balanced.
    """
    share = _share(batch_size, process_index, process_count)
    batches = _TrainBatches(split, image_shape, batch_size, share, skip_damaged, seed, start_step, augment, groups)
    return Batches(batches, num_workers, prefetch_batches)


def evaluation_batches(
    split: Split,
    *,
    batch_size: int,
    image_shape: ImageShape | None,
    num_workers: int,
    prefetch_batches: int,
    skip_damaged: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Every example once, in order: image, label and mask (bool [B]), false where the last batch is filled with zeros.

    Every host gets the same number of batches, and of each its contiguous share. With `skip_damaged`, damaged examples
    are zeros and masked, too.
    """
    share = _share(batch_size, process_index, process_count)
    batches = _EvaluationBatches(split, image_shape, batch_size, share, skip_damaged)
    return Batches(batches, min(num_workers, len(batches)), prefetch_batches)


def choose_workers(num_workers: int | None, *, batch_size: int, image_shape: ImageShape | None) -> int:
    """Decoding processes: as asked, else as many as cores where threads do not suffice and /dev/shm holds the batches.

    0 means threads. The batches are the same however they are decoded.
    """
    if num_workers is not None:
        return num_workers
    if image_shape is None:
        return 0
    cores = num_cores()
    if cores <= _THREADS_SUFFICE:
        return 0
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux
        return min(cores, _MAX_WORKERS)
    waiting = 3 * batch_size * math.prod(image_shape)  # bytes a process: two batches that are done, one in work
    return min(cores, _MAX_WORKERS) if min(cores, _MAX_WORKERS) * waiting <= free else 0


def measure_statistics(
    split: Split, *, image_shape: ImageShape, skip_damaged: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in 0..1, over at most 2,048 evenly spaced examples."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), _STATISTICS_EXAMPLES)).round().astype(int))
    counts = np.zeros((image_shape[2], 256), np.int64)
    for start in range(0, len(chosen), 64):
        for example in read_or_error(split.records, split.indices[chosen[start : start + 64]]):
            if not isinstance(example, DamagedRecordError):
                counts += channel_counts(fit_image(example.pop("image"), image_shape))
            elif not skip_damaged:
                raise example
    if not counts.any():
        raise RunError(f"{split.records.name}: no record of those that were tried can be read")
    return statistics_of_counts(counts)


@dataclass(frozen=True)
class _TrainBatches:
    """Item k is batch start_step + k."""

    split: Split
    image_shape: ImageShape | None
    batch_size: int
    share: slice
    skip_damaged: bool
    seed: int
    start_step: int
    augment: AugmentConfig
    groups: DrawnGroups | None

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, item: int) -> Batch:
        step, augment = self.start_step + item, self.augment
        index, _ = batch_examples(
            self.seed, step, num_examples=len(self.split), batch_size=self.batch_size, groups=self.groups
        )
        chosen = index[self.share]
        arrays = _zeros(self.split, self.image_shape, len(chosen))
        first = step * self.batch_size + self.share.start
        damaged: set[str] = set()
        for row, example in enumerate(self._examples(chosen, damaged)):
            if augment.random_resized_crop and self.image_shape is not None:
                generator = np.random.default_rng([AUGMENT_STREAM, self.seed, first + row])
                example["image"] = random_resized_crop(
                    generator,
                    example.pop("image"),
                    self.image_shape,
                    area=augment.crop_area,
                    aspect=augment.crop_aspect,
                )
            _put(arrays, row, example)
        return {**arrays, **_reported(damaged)}

    def _examples(self, chosen: np.ndarray, damaged: set[str]) -> Iterator[Example]:
        """The examples at `chosen`, and in the place of each that is damaged the next of the split that is not."""
        read = read_or_error(self.split.records, self.split.indices[chosen])
        for position, found in zip(chosen, read, strict=True):
            yield self._following(position, found, damaged) if isinstance(found, DamagedRecordError) else found

    def _following(self, position: int, error: DamagedRecordError, damaged: set[str]) -> Example:
        """The next example after `position`, where `error` was met, that is not damaged."""
        most = min(_DAMAGED_IN_A_ROW, len(self.split))
        for ahead in range(1, most + 1):
            if not self.skip_damaged:
                raise error
            damaged.add(str(error))
            (found,) = read_or_error(self.split.records, self.split.indices[[(position + ahead) % len(self.split)]])
            if not isinstance(found, DamagedRecordError):
                return found
            error = found
        raise RunError(f"{most} records in a row are damaged, too many to be skipped; the last: {error}")


@dataclass(frozen=True)
class _EvaluationBatches:
    split: Split
    image_shape: ImageShape | None
    batch_size: int
    share: slice
    skip_damaged: bool

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __getitem__(self, item: int) -> Batch:
        start = item * self.batch_size
        size = self.share.stop - self.share.start
        chosen = self.split.indices[start : start + self.batch_size][self.share]
        arrays = _zeros(self.split, self.image_shape, size)
        mask = np.zeros(size, bool)
        damaged: set[str] = set()
        for row, example in enumerate(read_or_error(self.split.records, chosen)):
            if isinstance(example, DamagedRecordError):
                if not self.skip_damaged:
                    raise example
                damaged.add(str(example))
                continue
            _put(arrays, row, example)
            mask[row] = True
        return {**arrays, "mask": mask, **_reported(damaged)}


def _zeros(split: Split, image_shape: ImageShape | None, size: int) -> Batch:
    """The arrays of so many examples, still empty."""
    return {
        name: np.zeros((size, *spec.shape), spec.dtype) for name, spec in example_of(split.records, image_shape).items()
    }


def _put(arrays: Batch, row: int, example: Example) -> None:
    """An example into its row; an image in the size of the row."""
    for name, array in arrays.items():
        array[row] = fit_image(example.pop("image"), array.shape[1:]) if name == "image" else example[name]


def random_resized_crop(
    generator: np.random.Generator,
    image: np.ndarray,
    image_shape: ImageShape,
    *,
    area: tuple[float, ...] = (0.08, 1.0),
    aspect: tuple[float, ...] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A box of a share of the area, and of an aspect, in these ranges (Szegedy et al. 2015, section 6), resized.

    Ten boxes are tried for one that fits, all drawn at once so that the draws of an example are always as many; then
    the whole image is fitted.
    """
    height, width = image.shape[:2]
    middle, half = (math.log(aspect[1]) + math.log(aspect[0])) / 2, (math.log(aspect[1]) - math.log(aspect[0])) / 2
    top_share, left_share, *draws = generator.random(22).tolist()
    for area_share, aspect_share in zip(draws[::2], draws[1::2], strict=True):
        pixels = height * width * (area[0] + (area[1] - area[0]) * area_share)
        turn = math.exp(middle + (2 * aspect_share - 1) * half)
        box_height, box_width = round(math.sqrt(pixels / turn)), round(math.sqrt(pixels * turn))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(top_share * (height - box_height + 1))
            left = int(left_share * (width - box_width + 1))
            return resize_image(image[top : top + box_height, left : left + box_width], *image_shape[:2])
    return fit_image(image, image_shape)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise UserError(f"batch_size={batch_size} does not divide over {process_count} hosts; choose a multiple of it")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _reported(damaged: set[str]) -> Batch:
    """What a batch says of the damaged records it met: nothing, nearly always."""
    return {"damaged": np.array(sorted(damaged))} if damaged else {}


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Watch:
    """Around waiting for a batch: says once a minute that none comes, so that a disk that hangs is not silent."""

    def __init__(self, name: str) -> None:
        self._name, self._since = name, 0.0
        self.ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self._since = 0.0

    def _run(self) -> None:
        warned_at = 0.0
        while not self.ended.wait(_PATIENCE / 10):
            since, now = self._since, time.monotonic()
            if since and now - max(since, warned_at) >= _PATIENCE:
                warned_at = now
                _log.warning(
                    "%s: no batch for %.0f s; is the disk stalled, or a decoding process stopped? Interrupt twice to "
                    "end; the same command goes on from the last checkpoint", self._name, now - since,
                )  # fmt: skip


def _close(held: list[Any], watch: _Watch) -> None:
    watch.ended.set()
    if held:
        held.pop().close()
        gc.collect()  # Grain's iterators lie in cycles; what is left of them at exit prints a traceback each


def _prepare_worker(index: int, count: int) -> None:
    """Signals to the whole job are the parent's to answer; a worker ends when told to, or when its parent is gone."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=[parent.sentinel], daemon=True).start()

    hold_back_threads()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
