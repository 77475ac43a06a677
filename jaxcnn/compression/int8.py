"""Int8: a float ONNX file, quantised after training by onnxruntime from images that it is shown, and run by it.

Weights become int8, symmetric, with a scale for each output channel; activations uint8, with a scale and a zero for
each array; biases int32 (Jacob et al. 2018, arXiv:1712.05877). Files and arrays alone: no run, no JAX.
"""

import contextlib
import fnmatch
import io
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.errors import UserError

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}  # onnxruntime's CalibrationMethod
PERCENTILE = 99.99  # of an array's values that the range of `percentile` holds; of Wu et al. 2020's (arXiv:2004.09602)
# Of histograms: onnxruntime's for percentiles; its 128 for entropy leave no choice, and a search takes their square.
HISTOGRAM_BINS = {"minmax": 0, "percentile": 2048, "entropy": 512}
WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A node that has weights."""

    name: str
    kind: str
    num_weights: int


@dataclass(frozen=True)
class Ranges:
    """What each array of a network ranges over, as onnxruntime keeps it in a file."""

    file: Path
    method: str  # a key of METHODS


def write_float(model: Any, file: Path, layer_names: Sequence[str]) -> None:
    """Writes an onnx.ModelProto, its nodes named: those with weights as the layers, if these are as many."""
    import onnx

    constants = {each.name for each in model.graph.initializer}
    weighty = [node for node in model.graph.node if _has_weights(node, constants)]
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    if len(layer_names) == len(weighty):
        for name, node in zip(layer_names, weighty, strict=True):
            node.name = name
    onnx.save(model, file)


def _has_weights(node: Any, constants: Iterable[str]) -> bool:
    return node.op_type in WITH_WEIGHTS and any(name in constants for name in node.input[:2])


def layers(model: Path) -> list[Layer]:
    """The nodes of a float file that have weights, in its order."""
    import onnx

    graph = onnx.load(model).graph
    sizes = {each.name: math.prod(each.dims) for each in graph.initializer}
    return [
        Layer(node.name, node.op_type, max(sizes[name] for name in node.input if name in sizes))
        for node in graph.node
        if _has_weights(node, sizes)
    ]


def excluded(of_file: Sequence[Layer], patterns: Sequence[str]) -> list[str]:
    """Names of the layers that patterns match. Raises UserError where one matches none."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(each.name, pattern) for each in of_file):
            raise UserError(
                f"--exclude={pattern} matches no layer; the first is {of_file[0].name if of_file else 'none'}"
            )
    return [each.name for each in of_file if any(fnmatch.fnmatchcase(each.name, pattern) for pattern in patterns)]


# ---- quantising


def calibrate(model: Path, batches: Iterable[np.ndarray], file: Path, *, method: str) -> Ranges:
    """The ranges of all arrays of a float file while it is shown some inputs, a batch at a time.

    Args:
      model: a float ONNX file of one input.
      batches: of inputs as the file takes them; what a batch makes is held in memory, so small ones.
      file: where the ranges are written.
      method: minmax: the smallest and the largest value; percentile: PERCENTILE of the values, the outermost are cut;
        entropy: the range whose 128 levels lose least by Kullback and Leibler's divergence (Migacz 2017, TensorRT).
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data

    options: dict[str, Any] = {"symmetric": False, "percentile": PERCENTILE, "num_bins": HISTOGRAM_BINS[method]}
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            model,
            augmented_model_path=os.path.join(folder, "augmented.onnx"),
            calibrate_method=CalibrationMethod[METHODS[method]],
            extra_options=options,
        )
        name = calibrator.infer_session.get_inputs()[0].name
        for batch in batches:
            with _quietly():
                calibrator.collect_data(_Once({name: batch}))
    with _quietly():
        save_tensors_data(calibrator.compute_data(), file)
    return Ranges(file, method)


class _Once:
    """What hands one batch to onnxruntime's calibration."""

    def __init__(self, inputs: dict[str, np.ndarray]):
        self._inputs: dict[str, np.ndarray] | None = inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The batch, then nothing."""
        inputs, self._inputs = self._inputs, None
        return inputs


def quantise(
    model: Path,
    output: Path,
    ranges: Ranges,
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    weight_bits: int = 7,
) -> None:
    """Writes the int8 file of a float one, in which each quantised array stands between QuantizeLinear and its inverse.

    Args:
      model: the float file, batch norm folded, straight from the export: after onnxruntime's own pre-processing its
        quantiser fails on scales of channels.
      output: the file to be written.
      ranges: `calibrate`'s, of this file.
      only: nodes to be quantised; none: all that can be.
      exclude: nodes that stay float.
      weight_bits: 7 or 8. CPUs with AVX2 and no VNNI add pairs of products of uint8 and int8 in 16 bits, and cut off
        what is too large for that; with 7 bits nothing is, so that the file answers alike on every CPU.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with _quietly():
        quantize_static(
            model,
            output,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(only),
            nodes_to_exclude=list(exclude),
            calibrate_method=CalibrationMethod[METHODS[ranges.method]],
            calibration_cache_path=ranges.file,
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps onnxruntime's prints and warnings, of a pre-processing that is not wanted, from the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


# ---- running


def open_session(model: Path, *, threads: int | None = None) -> Any:
    """An ONNX file in onnxruntime on this CPU, whose threads sleep between calls; none: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """The first output of a batch."""
    (name, *_) = (each.name for each in session.get_inputs())
    return np.asarray(session.run(None, {name: inputs})[0])


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call, each the median of rounds, and the ratio of the same rounds."""

    threads: int
    batch_size: int
    before: float
    after: float
    ratio: float  # before / after: above 1, after is faster
    lowest: float  # of the rounds' ratios
    highest: float


def latency(before: Path, after: Path, inputs: np.ndarray, *, threads: int, rounds: int, seconds: float) -> Latency:
    """How long two files take for the same batch, in turn, so that what slows the machine slows both."""
    sessions = [open_session(file, threads=threads) for file in (before, after)]
    calls: list[Callable[[], Any]] = [partial(run, session, inputs) for session in sessions]
    for call in calls:
        call()
    once = max(_seconds(call, 1) for call in calls)
    count = max(1, round(seconds / max(once, 1e-6)))
    pairs = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found = {side: _seconds(calls[side], count) for side in order}
        pairs.append((found[0], found[1]))
    ratios = [first / second for first, second in pairs]
    first, second = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    return Latency(threads, len(inputs), first, second, statistics.median(ratios), min(ratios), max(ratios))


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
