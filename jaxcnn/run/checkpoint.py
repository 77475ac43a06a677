"""Checkpoints: trees of arrays, saved, verified and restored with Orbax. Knows nothing of training.

Each checkpoint holds the arrays, JSON beside them, and a CRC-32 of every array: Orbax alone restores a flipped bit
silently. A checkpoint that does not verify is reported, set aside, and the one before it is used.
"""

import logging
import math
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from jaxcnn.errors import RunError, WriteError
from jaxcnn.files import finite, read_json, write_atomically
from jaxcnn.run.orbax_mends import mend_orbax

# Bytes of arrays that are read whatever a checkpoint takes on disk, and how many times that they may be beyond. Arrays
# of one value take next to nothing there, momenta that have not moved for one; weights about what they have here.
ALWAYS_READ, TIMES_ON_DISK = 1 << 30, 100

Report = Callable[[str], None]


class DamagedError(RunError):
    """A checkpoint cannot be read, or is not what was saved."""


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Any tree of arrays as `{"state/params/conv1/kernel": array}`; what is None or empty has no entry."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, np.ndarray], like: Any, *, loose: str | None = None) -> Any:
    """The inverse of `flatten` into the structure of `like`, whose leaves have the expected shapes and dtypes.

    Of the part named `loose`, each entry that is missing or other is as in `like`, and unexpected ones are dropped.

    Raises:
      ValueError: an array is missing, unexpected, or of another shape or dtype.
    """
    expected = flatten(like)
    if loose is not None:
        flat = _with_loose_part(flat, expected, loose)
    if expected.keys() != flat.keys():
        odd = sorted(expected.keys() ^ flat.keys())
        raise ValueError(f"{len(odd)} arrays are missing or unexpected, the first is {odd[0]}")
    for name, leaf in expected.items():
        if (leaf.shape, np.dtype(leaf.dtype)) != (flat[name].shape, flat[name].dtype):
            raise ValueError(f"{name} is {flat[name].dtype}{flat[name].shape}, not {leaf.dtype}{leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in expected])


def _with_loose_part(flat: dict[str, Any], expected: dict[str, Any], part: str) -> dict[str, Any]:
    """`flat` with exactly the arrays of a part that are expected; an entry, `part/entry/…`, is taken whole or not."""

    def entry(name: str) -> str:
        return "/".join(name.split("/")[:2])

    kept = {name: array for name, array in flat.items() if not name.startswith(f"{part}/")}
    wanted = {name: leaf for name, leaf in expected.items() if name.startswith(f"{part}/")}
    odd = {
        entry(name)
        for name, leaf in wanted.items()
        if name not in flat or (flat[name].shape, flat[name].dtype) != (leaf.shape, np.dtype(leaf.dtype))
    }
    return kept | {name: np.asarray(leaf) if entry(name) in odd else flat[name] for name, leaf in wanted.items()}


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes in C order."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")


class Checkpoints:
    """The checkpoints of one run, in `folder/<step>/`: the newest few, and the best few by one metric."""

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str = "",
        higher_is_better: bool = True,
        asynchronous: bool = True,
        read_only: bool = False,
        report: Report = logging.warning,
    ):
        """`best_metric` is a key of the metrics given to `save`.

        A value that is not finite is worse than any other, and never the best. With `keep_best=0` there is no best.
        """
        self._folder = epath.Path(folder)
        self._best_metric, self._sign = best_metric, 1 if higher_is_better else -1
        self._keep_last, self._keep_best, self._report = keep_last, keep_best, report
        self._asynchronous, self._read_only = asynchronous, read_only

    @cached_property
    def _manager(self) -> Any:
        """Orbax's manager. Importing Orbax takes half a second, which a new run's first step need not wait for."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy

        mend_orbax()
        if not self._read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
        policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(self._keep_last)]
        if self._keep_best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=self._rank,
                    n=self._keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._rank,  # without it the manager writes no metrics
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                enable_async_checkpointing=self._asynchronous and not self._read_only,
                create=False,
                # of a job's processes one writes and reads, and Orbax waits for no other
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
                ),
                read_only=self._read_only,
                cleanup_tmp_directories=not self._read_only,
            ),
            item_handlers={
                "arrays": ocp.StandardCheckpointHandler(),
                "json": ocp.JsonCheckpointHandler(),
                "metrics": ocp.JsonCheckpointHandler(),
            },
        )

    def _rank(self, metrics: Any) -> float:
        """Rank of a checkpoint's metrics, higher is better; the lowest for one that is not finite or not there."""
        value = metrics.get(self._best_metric) if isinstance(metrics, dict) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            return -math.inf
        return self._sign * value

    @property
    def _is_open(self) -> bool:
        """Whether the manager has been made."""
        return "_manager" in self.__dict__

    def _entries(self) -> Iterator[epath.Path]:
        return self._folder.iterdir() if self._folder.exists() else iter(())

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, the newest last."""
        return sorted(self._manager.all_steps()) if self._is_open or any(self._entries()) else []

    def save(self, step: int, tree: Any, extra: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Writes host arrays (which the caller must not change afterwards) and JSON; returns before it is on disk.

        Raises:
          RunError: this save could not begin, or the one before it failed.
        """
        import orbax.checkpoint as ocp

        arrays = flatten(tree)
        extra = {"extra": extra, "checksums": {name: checksum(array) for name, array in arrays.items()}}
        try:
            self._manager.check_for_errors()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(traverse_util.unflatten_dict(arrays, sep="/")),
                    json=ocp.args.JsonSave(extra),
                ),
                metrics=None if metrics is None else finite(metrics),
            )
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns once everything saved is on disk. Raises RunError if a save failed."""
        if not self._is_open:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RunError:
        reason = " ".join(str(error).split())[:200]
        return WriteError(f"saving to {self._folder} failed ({type(error).__name__}: {reason}); check space and rights")

    def restore_newest(self, like: Any, *, loose: str | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, tree, extra) of the newest checkpoint that verifies; None when there is none at all.

        `like` and `loose` are `unflatten`'s. Damaged checkpoints are reported and moved to `damaged_checkpoints/`
        beside the folder.

        Raises:
          RunError: there are checkpoints, but none verifies; they all stay where they are.
        """
        damaged: list[tuple[int, DamagedError]] = []
        for step in reversed(self.steps()):
            try:
                tree, extra = self.restore(step, like, loose=loose)
            except DamagedError as error:
                damaged.append((step, error))
                continue
            for number, reason in damaged:
                self._report(f"{reason}; moved to {self._set_aside(number)}, using the one before it")
            return step, tree, extra
        if damaged:
            raise RunError(f"no checkpoint could be read: {damaged[0][1]}; start again in another --workdir")
        return None

    def restore(self, step: int, like: Any, *, loose: str | None = None) -> tuple[Any, dict[str, Any]]:
        """(tree, extra) of one checkpoint, each array checked against its checksum; arguments as for `unflatten`.

        Raises:
          DamagedError: it cannot be read, or a checksum differs.
          RunError: it holds other arrays than `like`.
        """
        flat, extra = self.read(step)
        try:
            return unflatten(flat, like, loose=loose), extra
        except ValueError as error:
            raise RunError(f"checkpoint {self._folder / str(step)} is of another model or version: {error}") from None

    def read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays as `flatten` names them, extra) of one checkpoint, whatever it holds. Raises DamagedError."""
        import orbax.checkpoint as ocp

        try:
            self._check_size(step)
            restored = self._manager.restore(
                step, args=ocp.args.Composite(json=ocp.args.JsonRestore(), arrays=ocp.args.StandardRestore())
            )
            flat = traverse_util.flatten_dict(restored["arrays"], sep="/")
            flat = {name: np.asarray(array) for name, array in flat.items()}
            sums = restored["json"]["checksums"]
            wrong = [
                name for name in sums.keys() | flat.keys() if name not in flat or checksum(flat[name]) != sums[name]
            ]
            if wrong:
                raise ValueError(f"checksum of {min(wrong)} differs from the saved one")
            return flat, restored["json"]["extra"]
        except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
            reason = " ".join(str(error).split())[:160]
            raise DamagedError(f"checkpoint {self._folder / str(step)} is damaged ({reason})") from error

    def _check_size(self, step: int) -> None:
        """Raises ValueError where far more would be read than is stored: a few bytes may say that they are many."""
        shown = jax.tree.leaves(self._manager.item_metadata(step)["arrays"].tree)
        size = sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in shown)
        if size > ALWAYS_READ:
            arrays = self._folder / str(step) / "arrays"
            files = [each for depth in ("*", "*/*", "*/*/*") for each in arrays.glob(depth) if each.is_file()]
            size -= TIMES_ON_DISK * sum(each.stat().length for each in files)
        if size > ALWAYS_READ:
            raise ValueError("its arrays are said to be far larger than its files")

    def best_step(self) -> int | None:
        """The step with the best metric, the later of equals; None when no best is kept, or none has a finite one."""
        ranks = {step: self._rank(self.metrics(step)) for step in self.steps()} if self._keep_best else {}
        ranks = {step: rank for step, rank in ranks.items() if rank > -math.inf}
        return max(ranks, key=lambda step: (ranks[step], step)) if ranks else None

    def metrics(self, step: int) -> dict[str, float | None] | None:
        """The metrics given to `save`, None for one that is not finite; or None."""
        try:
            metrics = read_json(self._folder / str(step) / "metrics" / "metrics")
        except (OSError, ValueError):
            return None
        return finite(metrics) if isinstance(metrics, dict) else None

    def _set_aside(self, step: int) -> epath.Path:
        aside = self._folder.parent / "damaged_checkpoints"
        aside.mkdir(exist_ok=True)
        if not aside.exists():  # in a bucket, only what holds something is a folder
            write_atomically(aside / "README", "Checkpoints that could not be read.\n")
        number = len(list(aside.iterdir()))
        target = aside / f"{PurePosixPath(self._folder).name}-{step}-{number}"
        (self._folder / str(step)).rename(target)
        self._manager.reload()
        return target

    def close(self) -> None:
        """Waits for what is being written, then lets go of the folder."""
        if self._is_open:
            self._manager.close()
