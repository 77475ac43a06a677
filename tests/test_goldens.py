"""Our models give torchvision's logits under torchvision's weights, and have its number of parameters.

The weights are functions of a seed, each tensor's name and shape: see tests/goldens/README.md.
"""

import ast
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.models import MODELS
from jaxcnn.transfer.torchvision import NAMINGS, export_state_dict, import_state_dict

GOLDENS = Path(__file__).parent / "goldens" / "torchvision"
QUICK = ("resnet18",)  # the rest are slow: they take a minute together, most of it to compile


def fill(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("running_mean", "bias")):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) < 2:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) * (2.0 / np.prod(shape[1:])) ** 0.5).astype(np.float32)


def images(seed: int, size: int) -> np.ndarray:
    """NCHW."""
    return np.random.default_rng([seed, 0]).standard_normal((2, 3, size, size)).astype(np.float32)


def names() -> list:
    return [
        pytest.param(path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
        for path in sorted(GOLDENS.glob("*.npz"))
        if path.stem in MODELS
    ]


@pytest.mark.parametrize("name", names())
def test_logits_equal_torchvisions(name):
    golden = np.load(GOLDENS / f"{name}.npz")
    seed, size = int(golden["seed"]), int(golden["image_size"])
    shapes = [ast.literal_eval(str(shape)) for shape in golden["shapes"]]
    state_dict = {str(n): fill(seed, str(n), shape) for n, shape in zip(golden["names"], shapes, strict=True)}
    model = MODELS[name](num_classes=1000)
    inputs = jnp.asarray(images(seed, size).transpose(0, 2, 3, 1))
    # In training mode too: auxiliary heads have parameters there.
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    abstract = jax.eval_shape(partial(model.init, train=True), keys, inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract["params"])) == int(golden["num_params"])
    variables = import_state_dict(state_dict, abstract, NAMINGS[name])
    back = export_state_dict(variables, NAMINGS[name])
    assert back.keys() == state_dict.keys()
    assert all(back[n].tobytes() == state_dict[n].tobytes() and back[n].shape == state_dict[n].shape for n in back)
    logits = jax.jit(partial(model.apply, train=False))(variables, inputs)
    error = np.abs(np.asarray(logits) - golden["logits"]).max() / np.abs(golden["logits"]).max()
    assert error <= 1e-4
