"""Feeds a run's steps with data: from a set that lives on the devices, or from a stream of decoded batches.

The loop does not know which it has. Both give the same examples in the same order.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxcnn import data as data_lib
from jaxcnn.config import Config
from jaxcnn.data import Source
from jaxcnn.parallel import Parallel
from jaxcnn.step import gather

Progress = Callable[[str, int, int], None]  # what, done, total


def evaluation_inputs(num_examples: int, batch_size: int) -> dict[str, np.ndarray]:
    """For each call over a split, its examples and which of them count: `index` and `mask`, [calls, batch]."""
    index = np.arange(-(-num_examples // batch_size) * batch_size, dtype=np.int32).reshape(-1, batch_size)
    return {"index": np.minimum(index, num_examples - 1), "mask": index < num_examples}


def drawn_classes(config: Config, source: Source, progress: Progress) -> data_lib.Classes | None:
    """The classes of train that sampling draws from; none where it draws examples."""
    if config.data.sampling != "balanced":
        return None
    return data_lib.Classes.of(data_lib.classes_of(data_lib.labels_of(source.splits["train"], progress)))


def example_numbers(
    config: Config, source: Source, step: int, classes: data_lib.Classes | None = None
) -> dict[str, np.ndarray]:
    """Of a step's global batch, int32 [batch]: `index`, which examples of train these are, and the `epoch` of each.

    With `classes`, sampling is balanced, and an example's epoch says how often it came before.
    """
    index, epoch = data_lib.batch_examples(
        config.seed, step, num_examples=len(source.splits["train"]), batch_size=config.batch_size, classes=classes
    )
    return {"index": index.astype(np.int32), "epoch": epoch.astype(np.int32)}


class ResidentFeed:
    """Feeds a data set that lives on the device: a call's inputs are only the numbers of its examples."""

    max_calls_in_flight = 64
    fetch = staticmethod(gather)

    def __init__(self, config: Config, source: Source, parallel: Parallel, progress: Progress):
        self._config, self._source, self._parallel, self._progress = config, source, parallel, progress
        self._host: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._device: dict[str, Any] = {}

    @cached_property
    def _classes(self) -> data_lib.Classes | None:
        return drawn_classes(self._config, self._source, self._progress)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [n, height, width, channels], labels int32 [n] or soft) of a split, in host memory."""
        if split not in self._host:
            self._host[split] = data_lib.load_arrays(
                self._source.splits[split],
                fingerprint=self._source.fingerprint,
                image_shape=self._source.image_shape,
                cache=self._config.data.cache,
                progress=lambda done, total: self._progress(f"decoding {self._source.name}", done, total),
            )
        return self._host[split]

    def statistics(self) -> tuple[Any, Any]:
        """(mean, std) a channel of the train split."""
        return data_lib.channel_statistics(self.arrays("train")[0])

    def data(self, split: str = "train") -> dict[str, jax.Array]:
        """A split on every device."""
        if split not in self._device:
            images, labels = self.arrays(split)
            self._device[split] = self._parallel.replicate({"image": images, "label": labels})
        return self._device[split]

    def inputs(self, step: int, num_steps: int) -> Any:
        """Inputs of one call: each step's example_numbers [num_steps, batch], spread over the devices."""
        rows = self._parallel.local_rows(self._config.batch_size)
        steps = [example_numbers(self._config, self._source, s, self._classes) for s in range(step, step + num_steps)]
        stacked = {name: np.stack([numbers[name][rows] for numbers in steps]) for name in ("index", "epoch")}
        return self._parallel.shard(stacked, axis=1)

    def examples(self, count: int) -> np.ndarray:
        """The first images of train, in host memory."""
        return np.asarray(self.arrays("train")[0][:count])

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The global batch of a step, in host memory."""
        images, labels = self.arrays("train")
        numbers = example_numbers(self._config, self._source, step, self._classes)
        return {"image": images[numbers["index"]], "label": labels[numbers["index"]], **numbers}

    def evaluation(self, split: str, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """(data, inputs) for each call over a split, the last one padded."""
        data, count = self.data(split), len(self._source.splits[split])
        rows = self._parallel.local_rows(batch_size)
        inputs = evaluation_inputs(count, batch_size)
        for index, mask in zip(inputs["index"], inputs["mask"], strict=True):
            yield data, self._parallel.shard({"index": index[rows], "mask": mask[rows]})

    def close(self) -> None:
        """Lets go of the device's copy."""
        self._device.clear()


class StreamingFeed:
    """Feeds batches decoded by worker processes, ahead of the step that needs them."""

    max_calls_in_flight = 4  # each holds a batch on the device

    def __init__(self, config: Config, source: Source, parallel: Parallel, progress: Progress):
        self._config, self._source, self._parallel, self._progress = config, source, parallel, progress
        self._iterator: data_lib.Batches | None = None
        self._next_step = -1

    @cached_property
    def _classes(self) -> data_lib.Classes | None:
        return drawn_classes(self._config, self._source, self._progress)

    @staticmethod
    def fetch(data: Any, batch: Any) -> Any:
        """The batch itself."""
        return batch

    def statistics(self) -> tuple[Any, Any]:
        """(mean, std) a channel, over a sample of the train split."""
        return data_lib.measure_statistics(self._source.splits["train"], image_shape=self._source.image_shape)

    def data(self, split: str = "train") -> dict[str, jax.Array]:
        """Nothing lives on the device."""
        return {}

    def inputs(self, step: int, num_steps: int) -> Any:
        """Inputs of one call: its batch, with a leading axis of one step."""
        if self._iterator is None or step != self._next_step:
            self.close()
            data = self._config.data
            self._iterator = self._batches(
                step, data.num_workers, process_index=jax.process_index(), process_count=jax.process_count()
            )
        self._next_step = step + num_steps
        rows = self._parallel.local_rows(self._config.batch_size)
        numbers = example_numbers(self._config, self._source, step, self._classes)
        batch = {**next(self._iterator), **{name: array[rows] for name, array in numbers.items()}}
        return self._parallel.shard({name: array[None] for name, array in batch.items()}, axis=1)

    def examples(self, count: int) -> np.ndarray:
        """The first images of train, in host memory."""
        split = self._source.splits["train"]
        first = data_lib.Split(split.records, split.indices[:count])
        return data_lib.load_arrays(
            first, fingerprint=self._source.fingerprint, image_shape=self._source.image_shape, cache=False
        )[0]

    def _batches(self, step: int, num_workers: int, **process: int) -> data_lib.Batches:
        return data_lib.train_batches(
            self._source.splits["train"],
            seed=self._config.seed,
            batch_size=self._config.batch_size,
            start_step=step,
            image_shape=self._source.image_shape,
            augment=self._config.augment,
            num_workers=num_workers,
            prefetch_batches=self._config.data.prefetch_batches,
            classes=self._classes,
            **process,
        )

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The global batch of a step, in host memory."""
        with self._batches(step, 0) as batches:
            return {**next(batches), **example_numbers(self._config, self._source, step, self._classes)}

    def evaluation(self, split: str, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """(data, inputs) for each call over a split, the last one padded."""
        for batch in data_lib.evaluation_batches(
            self._source.splits[split],
            batch_size=batch_size,
            image_shape=self._source.image_shape,
            num_workers=0,  # threads: processes would be started anew for each evaluation
            prefetch_batches=self._config.data.prefetch_batches,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ):
            yield {}, self._parallel.shard(batch)

    def close(self) -> None:
        """Ends the worker processes."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


Feed = ResidentFeed | StreamingFeed
