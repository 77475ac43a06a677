"""TensorBoard's files of a run: event files, the projector's files, the profiler's traces.

Written by tensorboardX, without TensorFlow. Nothing here knows models or JAX's arrays: numpy, names and numbers.
"""

from __future__ import annotations  # so that a command that only says what is wrong need not import numpy

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from etils import epath

from jaxcnn.files import open_regular, write_atomically

if TYPE_CHECKING:
    import numpy as np

ROOT = ""  # the run that has what is of no split: the graph, hyperparameters, the projector, traces


class Node(Protocol):
    """Node of a graph, as layers/graph.py makes it."""

    name: str
    operation: str
    inputs: list[str]
    shape: tuple[int, ...]
    num_params: int


class TensorBoard:
    """One event file a split, so that TensorBoard draws train and validation in one chart."""

    def __init__(self, folder: epath.Path, step: int):
        """`step` is where the run is resumed, or 0."""
        from tensorboardX import SummaryWriter  # takes a moment, and not every run wants it

        self._make_writer = SummaryWriter
        self._folder, self._step = folder, step
        self._remote = "://" in os.fspath(folder)  # tensorboardX writes locally; then the files are copied
        self.local = Path(tempfile.mkdtemp(prefix="jaxcnn-tensorboard-")) if self._remote else Path(folder)
        self._copied: dict[Path, tuple[int, int]] = {}  # file -> size and time when it was copied
        self._writers: dict[str, Any] = {}
        self._files: dict[str, _Records] = {}

    def _writer(self, split: str) -> Any:
        if split not in self._writers:
            # Points of a killed run after the step it resumes from are disowned.
            purge = self._step + 1
            # Two files of one second would have one name; TensorBoard reads them in the order of their names.
            suffix = f".{self._step:012d}"
            writer = self._make_writer(str(self.local / split), purge_step=purge, filename_suffix=suffix, max_queue=100)
            events = writer.file_writer.event_writer._ev_writer
            events._py_recordio_writer = self._files[split] = _Records(events._py_recordio_writer)
            self._writers[split] = writer
        return self._writers[split]

    def scalars(self, split: str, step: int, values: Mapping[str, float | None]) -> None:
        """Writes a point per value; values that are not finite, or None, are left out."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._writer(split).add_scalar(name, value, step, walltime=time.time())

    def histograms(self, split: str, step: int, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Writes histograms, each by its bins' upper ends and counts."""
        import numpy as np

        for name, (ends, counts) in values.items():
            starts = np.append(ends[0], ends[:-1])
            middles, occupied = (starts + ends) / 2, np.flatnonzero(counts)
            self._writer(split).add_histogram_raw(
                name,
                min=float(starts[occupied[0]]),
                max=float(ends[occupied[-1]]),
                num=float(counts.sum()),
                sum=float(counts @ middles),
                sum_squares=float(counts @ np.square(middles)),
                bucket_limits=ends.tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
                walltime=time.time(),
            )

    def hyperparameters(
        self, values: Mapping[str, Any], metrics: Sequence[tuple[str, str]], *, group: str = ""
    ) -> None:
        """Writes what a run is compared with others by: config fields, and (split, name) of the metrics beside them.

        Runs of one `group` are one row, with the means of their metrics; "" is a row of its own.
        """
        from tensorboardX.proto.api_pb2 import MetricInfo, MetricName
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
        from tensorboardX.summary import hparams

        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        experiment, start, _ = hparams(plain, {})
        # tensorboardX knows no splits: the metrics' names are put in here.
        content = experiment.value[0].metadata.plugin_data
        told = HParamsPluginData.FromString(content.content)
        told.experiment.metric_infos.extend(
            MetricInfo(name=MetricName(group=split, tag=name), display_name=f"{split} {name}")
            for split, name in metrics
        )
        content.content = told.SerializeToString()
        of_run = start.value[0].metadata.plugin_data
        told = HParamsPluginData.FromString(of_run.content)
        told.session_start_info.group_name = group
        of_run.content = told.SerializeToString()
        for summary in (experiment, start):
            self._writer(ROOT).file_writer.add_summary(summary)

    def finished(self) -> None:
        """Marks the run as finished."""
        from tensorboardX.summary import hparams

        self._writer(ROOT).file_writer.add_summary(hparams({}, {})[2])

    def graph(self, nodes: Sequence[Node]) -> None:
        """Writes a model's graph: TensorBoard folds its nodes by the slashes in their names."""
        from tensorboardX.proto.attr_value_pb2 import AttrValue
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.graph_pb2 import GraphDef
        from tensorboardX.proto.node_def_pb2 import NodeDef
        from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboardX.proto.versions_pb2 import VersionDef

        def attributes(node: Node) -> dict[str, Any]:
            # the batch, which is of any size, has -1
            sizes = [TensorShapeProto.Dim(size=size) for size in (-1, *node.shape[1:])]
            shapes = AttrValue.ListValue(shape=[TensorShapeProto(dim=sizes)])
            return {"_output_shapes": AttrValue(list=shapes), "parameters": AttrValue(i=node.num_params)}

        graph = GraphDef(versions=VersionDef(producer=22))
        graph.node.extend(
            NodeDef(name=node.name, op=node.operation, input=node.inputs, attr=attributes(node)) for node in nodes
        )
        self._writer(ROOT).file_writer.add_event(Event(graph_def=graph.SerializeToString()))

    def image(self, split: str, name: str, step: int, image: np.ndarray) -> None:
        """Writes an image, uint8 [height, width, 3]."""
        self._writer(split).add_image(name, image, step, walltime=time.time(), dataformats="HWC")

    def text(self, split: str, name: str, step: int, text: str) -> None:
        """Writes a text, which TensorBoard shows as it is, not as Markdown."""
        quoted = "".join(f"    {line}\n" for line in text.splitlines())
        self._writer(split).add_text(name, quoted, step, walltime=time.time())

    def pr_curve(self, split: str, name: str, step: int, positive: np.ndarray, probability: np.ndarray) -> None:
        """Writes a precision-recall curve, of bool [n] and probabilities [n]."""
        self._writer(split).add_pr_curve(name, positive, probability, step, walltime=time.time())

    def embedding(
        self, name: str, step: int, features: np.ndarray, columns: Mapping[str, Sequence[str]], images: np.ndarray
    ) -> None:
        """Writes points [n, features] for the projector.

        Args:
          name: what the projector calls them.
          step: of the run.
          features: rounded to six digits.
          columns: what is said of each point, by the column's name.
          images: uint8 [n, side, side, 3], beside the points; n side² at most 8192².
        """
        import numpy as np

        # The projector reads no events: a run that wrote these files before, and was killed, leaves nothing twice.
        folder = self.local / f"{step:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        (self.local / "projector_config.pbtxt").unlink(missing_ok=True)
        clean = [[" ".join(value.split()) for value in row] for row in zip(*columns.values(), strict=True)]
        self._writer(ROOT).add_embedding(
            np.array([[float(f"{x:.6g}") for x in row] for row in features]),
            metadata=clean,
            metadata_header=list(columns),
            label_img=images.transpose(0, 3, 1, 2).astype(np.float32) / 255,
            global_step=step,
            tag=name,
        )

    def flush(self) -> None:
        """Writes all that was given into the run's folder. Raises OSError where something could not be written."""
        for split, writer in self._writers.items():
            writer.flush()
            if self._files[split].fault is not None:
                raise self._files[split].fault
        if not self._remote:
            return
        for file in self.local.rglob("*"):
            stat = file.stat()
            if file.is_file() and self._copied.get(file) != (stat.st_size, stat.st_mtime_ns):
                target = self._folder / str(file.relative_to(self.local))
                target.parent.mkdir(parents=True, exist_ok=True)
                with open_regular(file) as events:
                    write_atomically(target, events.read())
                self._copied[file] = stat.st_size, stat.st_mtime_ns

    def close(self) -> None:
        """Closes the files; what cannot be written any more is lost."""
        for writer in self._writers.values():
            writer.close()
        with contextlib.suppress(OSError):
            self.flush()


class _Records:
    """tensorboardX's file of events, which a full disk would make raise in its thread and once more at exit."""

    def __init__(self, file: Any):
        self._file = file
        self.fault: Any = None  # the first OSError

    def write(self, data: bytes) -> None:
        self._try(self._file.write, data)

    def flush(self) -> None:
        self._try(self._file.flush)

    def close(self) -> None:
        self._try(self._file.close)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            self.fault = self.fault or error


class Profile:
    """JAX's profiler over some of a run's steps, into a folder that TensorBoard's profile plugin reads."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        """Records from after the first to after the last of `steps`; none: nothing."""
        self._first, self._last = steps or (0, 0)
        self._folder, self._on = folder, False

    def before(self, step: int, num_steps: int) -> None:
        """Before a call of `num_steps` steps from `step` on."""
        if not self._on and step < self._last and step + num_steps > self._first:
            import jax.profiler

            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, ticket: Any) -> None:
        """After a call that ended at `step`; `ticket` is ready when the devices have done it."""
        if self._on and step >= self._last:
            ticket.block_until_ready()
            self.stop()

    def stop(self) -> None:
        """Writes what was recorded, also of steps that were cut short."""
        if self._on:
            import jax.profiler

            self._on = False
            jax.profiler.stop_trace()


@contextlib.contextmanager
def profiling(
    steps: tuple[int, int] | None, board: TensorBoard | None, step: int, say: Callable[[str], None]
) -> Iterator[Profile]:
    """The profile of `steps` for a run that begins at `step`; says so where that is too late."""
    if steps is not None and step >= steps[1]:
        say(f"profile.steps={steps[0]}:{steps[1]}: the run goes on from step {step:,}, so nothing is recorded")
    profile = Profile(steps if board else None, board.local if board else Path())
    try:
        yield profile
    finally:
        profile.stop()
