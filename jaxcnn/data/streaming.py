"""Batches decoded as they are needed, by Grain, for sets that are too large to keep decoded.

A batch depends on (seed, step) alone, however many processes decode it. Yields numpy uint8 images; augmentation other
than the random resized crop, and normalising, are for the device.
"""

import gc
import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from jaxcnn.config import AugmentConfig
from jaxcnn.data.decoding import fit_image, resize_image
from jaxcnn.data.order import AUGMENT_STREAM, Classes, batch_examples
from jaxcnn.data.records import ImageShape, Split, label_array, label_shape, one_line
from jaxcnn.data.resident import channel_counts, statistics_of_counts
from jaxcnn.errors import RunError, UserError

Batch = dict[str, np.ndarray]

_ENDLESS = 1 << 62
_STATISTICS_EXAMPLES = 2048


class Batches(Iterator[Batch]):
    """An iterator over batches that owns the processes or threads that decode them. They end with it, or on close()."""

    def __init__(self, batches: "_TrainBatches | _EvaluationBatches", num_workers: int, prefetch_batches: int) -> None:
        import grain  # takes a second, and a run whose data is resident never needs it
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, also where no command line was parsed
            flags.FLAGS.mark_as_parsed()
        # An item of Grain's is a whole batch. CIFAR-10 images a second on two cores: 25,000 with threads (0 workers)
        # and 16,000 to 32,000 with two processes; as items of one record each, 900 and 2,600.
        dataset = grain.MapDataset.source(batches)
        if num_workers > 0:
            options = grain.MultiprocessingOptions(num_workers, math.ceil(prefetch_batches / num_workers))
            read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            stream = dataset.to_iter_dataset(read_options).mp_prefetch(options, worker_init_fn=_prepare_worker)
        else:
            num_threads = min(prefetch_batches, os.cpu_count() or 1)
            stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads, prefetch_batches))
        self._name = batches.split.records.name
        iterator = iter(stream)
        iterator.start_prefetch()  # decoding goes on while the first step compiles
        self._held = [iterator]  # in a list, so that closing lets go of it: Grain complains of one left at exit
        self._finalizer = weakref.finalize(self, _close, self._held)

    def __next__(self) -> Batch:
        if not self._held:
            raise StopIteration
        try:
            # Copied out of the shared memory that processes answer in, which is given back at once: it is scarce.
            return {key: np.array(value) for key, value in next(self._held[0]).items()}
        except (StopIteration, RunError):
            self.close()
            raise
        except Exception as error:
            self.close()
            raise RunError(
                f"{self._name}: decoding failed ({one_line(error)}); exit code -9 means out of memory, -7 that "
                "/dev/shm is full: lower data.num_workers or data.prefetch_batches"
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
    image_shape: ImageShape,
    augment: AugmentConfig,
    num_workers: int,
    prefetch_batches: int,
    classes: Classes | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless batches from step `start_step` on: image uint8 [B, H, W, C], label int32 [B] or soft, float32 [B, K].

    With several hosts B is the host's contiguous share of the global `batch_size`. `classes`: sampling is balanced.
    """
    share = _share(batch_size, process_index, process_count)
    crop = augment.random_resized_crop
    batches = _TrainBatches(split, image_shape, batch_size, share, seed, start_step, crop, classes)
    return Batches(batches, num_workers, prefetch_batches)


def evaluation_batches(
    split: Split,
    *,
    batch_size: int,
    image_shape: ImageShape,
    num_workers: int,
    prefetch_batches: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Every example once, in order: image, label and mask (bool [B]), false where the last batch is filled with zeros.

    Every host gets the same number of batches, and of each its contiguous share.
    """
    share = _share(batch_size, process_index, process_count)
    batches = _EvaluationBatches(split, image_shape, batch_size, share)
    return Batches(batches, min(num_workers, len(batches)), prefetch_batches)


def measure_statistics(split: Split, *, image_shape: ImageShape) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in 0..1, over at most 2,048 evenly spaced examples."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), _STATISTICS_EXAMPLES)).round().astype(int))
    counts = np.zeros((image_shape[2], 256), np.int64)
    for start in range(0, len(chosen), 64):
        for example in split.records.read(split.indices[chosen[start : start + 64]]):
            counts += channel_counts(fit_image(example["image"], image_shape))
    return statistics_of_counts(counts)


@dataclass(frozen=True)
class _TrainBatches:
    """Item k is batch start_step + k."""

    split: Split
    image_shape: ImageShape
    batch_size: int
    share: slice
    seed: int
    start_step: int
    random_resized_crop: bool
    classes: Classes | None

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, item: int) -> Batch:
        step = self.start_step + item
        index, _ = batch_examples(
            self.seed, step, num_examples=len(self.split), batch_size=self.batch_size, classes=self.classes
        )
        chosen = index[self.share]
        images = np.empty((len(chosen), *self.image_shape), np.uint8)
        labels = []
        first = step * self.batch_size + self.share.start
        for row, example in enumerate(self.split.records.read(self.split.indices[chosen])):
            if self.random_resized_crop:
                generator = np.random.default_rng([AUGMENT_STREAM, self.seed, first + row])
                images[row] = random_resized_crop(generator, example["image"], self.image_shape)
            else:
                images[row] = fit_image(example["image"], self.image_shape)
            labels.append(example["label"])
        return {"image": images, "label": label_array(labels, self.split.records)}


@dataclass(frozen=True)
class _EvaluationBatches:
    split: Split
    image_shape: ImageShape
    batch_size: int
    share: slice

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __getitem__(self, item: int) -> Batch:
        start = item * self.batch_size
        size = self.share.stop - self.share.start
        chosen = self.split.indices[start : start + self.batch_size][self.share]
        images = np.zeros((size, *self.image_shape), np.uint8)
        labels = label_array(np.zeros((size, *label_shape(self.split.records))), self.split.records)
        for row, example in enumerate(self.split.records.read(chosen) if len(chosen) else ()):
            images[row] = fit_image(example["image"], self.image_shape)
            labels[row] = example["label"]
        return {"image": images, "label": labels, "mask": np.arange(size) < len(chosen)}


def random_resized_crop(generator: np.random.Generator, image: np.ndarray, image_shape: ImageShape) -> np.ndarray:
    """A box of 8-100 % of the area and aspect 3/4-4/3 (Szegedy et al. 2015, section 6), resized to image_shape.

    Ten boxes are tried for one that fits, all drawn at once so that the draws of an example are always as many; then
    the whole image is fitted.
    """
    height, width = image.shape[:2]
    top_share, left_share, *draws = generator.random(22).tolist()
    for area_share, aspect_share in zip(draws[::2], draws[1::2], strict=True):
        area = height * width * (0.08 + 0.92 * area_share)
        aspect = math.exp((2 * aspect_share - 1) * math.log(4 / 3))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
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


def _close(held: list[Any]) -> None:
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

    import cv2

    cv2.setNumThreads(1)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
