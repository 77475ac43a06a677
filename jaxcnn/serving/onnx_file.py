"""A network in an ONNX file of jaxcnn.export or jaxcnn.quantize, run by onnxruntime, as serving asks of one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from jaxcnn.errors import UserError
from jaxcnn.files import from_json, read_bytes
from jaxcnn.plain_data import Number, conforms
from jaxcnn.results.trained import likeliest
from jaxcnn.terminal import one_line

LARGEST_FILE = 2 << 30  # bytes: a protocol buffer's limit
_SIZE = Number(1, 2**16, integer=True)
_FACTS = {"class_names": [str], "image_shape": [_SIZE], "resized": _SIZE}


@dataclass(frozen=True)
class OnnxFile:
    """The file's network; the names are those of results.trained.TrainedModel."""

    session: Any
    name: str  # of the model
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    resized: int  # the shorter side of an image before its middle is cropped
    source: str  # the file

    def probabilities_call(self, views: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
        """uint8 [batch, height, width, channels] to probabilities, float32 [batch, classes]."""
        if views not in (None, "none"):
            raise UserError(f"--tta={views}: views are averaged by a run's network; leave it out with --onnx")
        given = self.session.get_inputs()[0].name
        return lambda images: softmax(self.session.run(None, {given: images})[0], axis=1)

    def explain_call(self) -> Any:
        """None: Raises UserError, since a file shows nothing of its inside."""
        raise UserError("an ONNX file shows no maps; serve the run for them")

    def likeliest(self, probabilities: np.ndarray, top_k: int) -> list[tuple[str, float]]:
        """The top_k (name, probability) of a row [classes]."""
        return likeliest(self.class_names, probabilities, top_k)


def open_onnx(path: str) -> OnnxFile:
    """Raises UserError where onnxruntime is missing, or the file is no network that this project has exported."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("--onnx needs onnxruntime, which is not installed: pip install 'jaxcnn[export]'") from None
    try:
        content = read_bytes(Path(path), limit=LARGEST_FILE)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it finds wrong is said in our line
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        told = session.get_modelmeta().custom_metadata_map
        facts = {name: from_json(told[name]) for name in _FACTS if name in told}
        inputs = session.get_inputs()
    except OSError as error:
        raise UserError(f"--onnx={path} cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # onnxruntime's errors have no class of their own
        raise UserError(f"--onnx={path} is no ONNX file that runs: {one_line(error)[:150]}") from None
    whole = conforms(facts, _FACTS) and len(facts["image_shape"]) == 3 and told.get("task") == "classification"
    if not whole or len(inputs) != 1 or inputs[0].type != "tensor(uint8)":
        raise UserError(
            f"--onnx={path} does not say what jaxcnn.export and jaxcnn.quantize say of a network of images and classes "
            "(without --raw); make it by one of them"
        )
    return OnnxFile(
        session=session,
        name=told.get("model", "network"),
        class_names=tuple(facts["class_names"]),
        image_shape=tuple(facts["image_shape"]),
        resized=facts["resized"],
        source=path,
    )
