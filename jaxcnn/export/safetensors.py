"""A network's weights as safetensors, by our own names, with what is told of it as the file's metadata.

By torchvision's and timm's names: `python -m jaxcnn.transfer export`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxcnn.export.network import Network
from jaxcnn.run.checkpoint import flatten, unflatten
from jaxcnn.transfer.state_dicts import read_safetensors


def to_safetensors(network: Network) -> bytes:
    """The content of a file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in flatten(network.variables).items()}
    return save(arrays, {"format": "pt", **network.text()})  # PyTorch's libraries look for the format


def run_safetensors(content: bytes, inputs: np.ndarray, network: Network) -> np.ndarray:
    """What the network makes of inputs with the weights that are read back."""
    variables: Any = unflatten(read_safetensors(content, "the file"), network.variables)
    return replace(network, variables=variables).logits(inputs)
