"""Feeds a run's steps with data: from a set that lives on the devices, or from a stream of decoded batches.

The loop does not know which it has. Both give the same examples in the same order.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxcnn import data as data_lib
from jaxcnn.config import Config
from jaxcnn.data import Source
from jaxcnn.errors import RunError
from jaxcnn.hosts import job
from jaxcnn.training.parallel import Parallel
from jaxcnn.training.step import gather

Progress = Callable[[str, int, int], None]  # what, done, total
Beside = Callable[[], dict[str, Any]]  # what a training batch has beside its examples, in host memory, by name

TOLD_OF = 5  # damaged records that are named when they are skipped


def evaluation_inputs(num_examples: int, batch_size: int) -> dict[str, np.ndarray]:
    """For each call over a split, its examples and which of them count: `index` and `mask`, [calls, batch]."""
    index = np.arange(-(-num_examples // batch_size) * batch_size, dtype=np.int32).reshape(-1, batch_size)
    return {"index": np.minimum(index, num_examples - 1), "mask": index < num_examples}


def balanced_draws(config: Config, source: Source, progress: Progress) -> data_lib.DrawnGroups | None:
    """What balanced sampling draws from, groups of train's examples; none where each example is drawn alike."""
    if config.data.sampling != "balanced":
        return None
    return data_lib.groups_of(source.splits["train"], progress)


def example_numbers(
    config: Config, source: Source, step: int, draws: data_lib.DrawnGroups | None = None, *, in_streams: bool = False
) -> dict[str, np.ndarray]:
    """Of a step's global batch, int32 [batch]: `index`, which examples of train these are, and the `epoch` of each.

    With `draws`, sampling is balanced, and an example's epoch says how often it came before. In streams, row b of a
    batch continues row b of the one before.
    """
    sizes = {"num_examples": len(source.splits["train"]), "batch_size": config.batch_size}
    if in_streams:
        index, epoch = data_lib.stream_examples(step, **sizes)
    else:
        index, epoch = data_lib.batch_examples(config.seed, step, **sizes, groups=draws)
    return {"index": index.astype(np.int32), "epoch": epoch.astype(np.int32)}


class _Damaged:
    """The damaged records that were skipped so far, told of as they are met."""

    def __init__(self, progress: Progress):
        self._progress, self.records = progress, set[str]()

    def add(self, records: Iterable[str]) -> None:
        """Each is what is wrong with a record, by its error's message."""
        for record in sorted(set(records) - self.records):
            if len(self.records) < TOLD_OF:
                self._progress(f"skipped: {record.rpartition(';')[0]}", 0, 0)  # what is wrong, not what to do
            elif len(self.records) == TOLD_OF:
                self._progress("skipped: more damaged records, which are only counted from here on", 0, 0)
            self.records.add(record)


class ResidentFeed:
    """Feeds a data set that lives on the device: a call's inputs are only the numbers of its examples."""

    max_calls_in_flight = 64
    fetch = staticmethod(gather)

    def __init__(
        self,
        config: Config,
        source: Source,
        parallel: Parallel,
        progress: Progress,
        *,
        in_streams: bool = False,
        beside: Beside = dict,
    ):
        self._config, self._source, self._parallel, self._progress = config, source, parallel, progress
        self._in_streams, self._make_beside = in_streams, beside
        self._host: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = {}
        self._device: dict[str, Any] = {}
        self._damaged = _Damaged(progress)

    @cached_property
    def _draws(self) -> data_lib.DrawnGroups | None:
        return balanced_draws(self._config, self._source, self._progress)

    @cached_property
    def beside(self) -> dict[str, Any]:
        """What a training batch has beside its examples, by name."""
        return self._make_beside()

    def arrays(self, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """(arrays [n, ...] by name, bool [n] which examples are valid) of a split, in host memory.

        A damaged example that is skipped is, in train, the next one that is not; elsewhere it is not valid.
        """
        if split not in self._host:
            examples = self._source.splits[split]
            arrays, valid = data_lib.load_examples(
                examples,
                fingerprint=self._source.fingerprint,
                **self._source.fit,
                cache=self._config.data.cache,
                progress=lambda done, total: self._progress(f"decoding {self._source.name}", done, total),
                skip_damaged=self._config.data.damaged == "skip",
            )
            damaged = np.flatnonzero(~valid)
            if len(damaged):
                if not valid.any():
                    raise RunError(f"{self._source.name}: all {len(damaged):,} records of {split} are damaged")
                errors = data_lib.read_or_error(examples.records, examples.indices[damaged])
                self._damaged.add(str(error) for error in errors)
                if split == "train":
                    sound = np.flatnonzero(valid)
                    following = sound[np.searchsorted(sound, damaged) % len(sound)]
                    for array in arrays.values():
                        array[damaged] = array[following]
                    valid = np.ones_like(valid)
            self._host[split] = arrays, valid
        return self._host[split]

    def count_damaged(self) -> int:
        """Records that were skipped so far."""
        return len(self._damaged.records)

    def num_counted(self, split: str) -> int:
        """Examples that an evaluation of the split counts: all that are not damaged."""
        return int(self.arrays(split)[1].sum())

    def data(self, split: str = "train") -> dict[str, Any]:
        """A split on every device; of train with what is beside its examples."""
        if split != "train":
            return self._examples(split)
        if "beside" not in self._device:
            self._device["beside"] = self._parallel.replicate(self.beside)
        return {**self._examples(split), **self._device["beside"]}

    def _examples(self, split: str) -> dict[str, jax.Array]:
        if split not in self._device:
            arrays, valid = self.arrays(split)
            self._device[split] = self._parallel.replicate({**arrays, "valid": valid})
        return self._device[split]

    def inputs(self, step: int, num_steps: int) -> Any:
        """Inputs of one call: each step's example_numbers [num_steps, batch], spread over the devices."""
        rows = self._parallel.local_rows(self._config.batch_size)
        steps = [self._numbers(s) for s in range(step, step + num_steps)]
        stacked = {name: np.stack([numbers[name][rows] for numbers in steps]) for name in ("index", "epoch")}
        return self._parallel.shard(stacked, axis=1)

    def _numbers(self, step: int) -> dict[str, np.ndarray]:
        return example_numbers(self._config, self._source, step, self._draws, in_streams=self._in_streams)

    def examples(self, count: int) -> dict[str, np.ndarray]:
        """The first examples of train, arrays [count, ...] by name, in host memory."""
        return {name: np.asarray(array[:count]) for name, array in self.arrays("train")[0].items()}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The global batch of a step, in host memory."""
        numbers = self._numbers(step)
        return {name: array[numbers["index"]] for name, array in self.arrays("train")[0].items()} | numbers

    def evaluation(self, split: str, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """(data, inputs) for each call over a split, the last one padded."""
        data, count = self._examples(split), len(self._source.splits[split])
        rows = self._parallel.local_rows(batch_size)
        inputs = evaluation_inputs(count, batch_size)
        for index, mask in zip(inputs["index"], inputs["mask"], strict=True):
            yield data, self._parallel.shard({"index": index[rows], "mask": mask[rows]})

    def with_seed(self, config: Config) -> "ResidentFeed":
        """The same examples, decoded once, in the order of a config that differs in the seed alone."""
        feed = copy.copy(self)
        feed._config, feed._device = config, {}
        return feed

    def close(self) -> None:
        """Lets go of the device's copy."""
        self._device.clear()


class StreamingFeed:
    """Feeds batches decoded by worker processes, ahead of the step that needs them."""

    max_calls_in_flight = 4  # each holds a batch on the device

    def __init__(
        self, config: Config, source: Source, parallel: Parallel, progress: Progress, *, beside: Beside = dict
    ):
        self._config, self._source, self._parallel, self._progress = config, source, parallel, progress
        self._make_beside = beside
        self._iterator: data_lib.Batches | None = None
        self._next_step = -1
        self._skip_damaged = config.data.damaged == "skip"
        self._damaged = _Damaged(progress)
        self._num_counted: dict[str, int] = {}

    def count_damaged(self) -> int:
        """Records that were skipped so far; every process must ask."""
        return len(set().union(*job.tell_all(sorted(self._damaged.records))))

    def num_counted(self, split: str) -> int:
        """Examples that the last evaluation of the split counted: all that are not damaged."""
        return self._num_counted[split]

    @cached_property
    def _draws(self) -> data_lib.DrawnGroups | None:
        return balanced_draws(self._config, self._source, self._progress)

    @cached_property
    def beside(self) -> dict[str, Any]:
        """What a training batch has beside its examples, by name."""
        return self._make_beside()

    @cached_property
    def _beside_on_devices(self) -> dict[str, Any]:
        return self._parallel.replicate(self.beside)

    @staticmethod
    def fetch(data: Any, batch: Any) -> Any:
        """The batch itself, with what is beside its examples."""
        return {**batch, **data}

    def data(self, split: str = "train") -> dict[str, Any]:
        """What lives on the device: no examples, only what is beside train's."""
        return self._beside_on_devices if split == "train" else {}

    def inputs(self, step: int, num_steps: int) -> Any:
        """Inputs of one call: its batch, with a leading axis of one step."""
        if self._iterator is None or step != self._next_step:
            self.close()
            num_workers = data_lib.choose_workers(
                self._config.data.num_workers,
                batch_size=self._config.batch_size // jax.process_count(),
                **self._source.fit,
            )
            self._iterator = self._batches(
                step, num_workers, process_index=jax.process_index(), process_count=jax.process_count()
            )
        self._next_step = step + num_steps
        rows = self._parallel.local_rows(self._config.batch_size)
        numbers = example_numbers(self._config, self._source, step, self._draws)
        batch = {**next(self._iterator), **{name: array[rows] for name, array in numbers.items()}}
        self._damaged.add(self._iterator.damaged)
        return self._parallel.shard({name: array[None] for name, array in batch.items()}, axis=1)

    def examples(self, count: int) -> dict[str, np.ndarray]:
        """The first examples of train, arrays [count, ...] by name, in host memory."""
        split = self._source.splits["train"]
        first = data_lib.Split(split.records, split.indices[:count])
        return data_lib.load_examples(
            first,
            fingerprint=self._source.fingerprint,
            **self._source.fit,
            cache=False,
            skip_damaged=self._skip_damaged,
        )[0]

    def _batches(self, step: int, num_workers: int, **process: Any) -> data_lib.Batches:
        return data_lib.train_batches(
            self._source.splits["train"],
            seed=self._config.seed,
            batch_size=self._config.batch_size,
            start_step=step,
            **self._source.fit,
            augment=self._config.augment,
            num_workers=num_workers,
            prefetch_batches=self._config.data.prefetch_batches,
            skip_damaged=self._skip_damaged,
            groups=self._draws,
            **process,
        )

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The global batch of a step, in host memory."""
        with self._batches(step, 0) as batches:
            return {**next(batches), **example_numbers(self._config, self._source, step, self._draws)}

    def evaluation(self, split: str, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """(data, inputs) for each call over a split, the last one padded."""
        examples = self._source.splits[split]
        batches = data_lib.evaluation_batches(
            examples,
            batch_size=batch_size,
            **self._source.fit,
            num_workers=0,  # threads: processes would be started anew for each evaluation
            prefetch_batches=self._config.data.prefetch_batches,
            skip_damaged=self._skip_damaged,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for batch in batches:
            yield {}, self._parallel.shard(batch)
        self._damaged.add(batches.damaged)
        self._num_counted[split] = len(examples) - sum(job.tell_all(len(batches.damaged)))

    def close(self) -> None:
        """Ends the worker processes."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


Feed = ResidentFeed | StreamingFeed
