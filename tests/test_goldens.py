"""Our models give torchvision's logits under torchvision's weights, and have its number of parameters.

The weights are functions of a seed, each tensor's name and shape: see tests/goldens/README.md.
"""

import ast
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.models import MODELS
from jaxcnn.transfer.torchvision import NAMINGS, Naming, export_state_dict, import_state_dict, their_name

GOLDENS = Path(__file__).parent / "goldens" / "torchvision"
# the rest are slow: they take a minute together, most of it to compile
QUICK = ("efficientnet_b0", "mobilenet_v2", "resnet18", "shufflenet_v2_x1_0", "squeezenet1_0")


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


# what needs a rule of its own: layers counted from 0, layers that some blocks lack, names of another kind
NAMES = [
    ("mobilenet_v2", "stage1_block1/project/norm/scale", "features.1.conv.2.weight"),
    ("mobilenet_v2", "stage3_block2/expand/conv/kernel", "features.5.conv.0.0.weight"),
    ("mobilenet_v2", "stage7_block1/project/norm/var", "features.17.conv.3.running_var"),
    ("mobilenet_v3_large", "block1/project/conv/kernel", "features.1.block.1.0.weight"),
    ("mobilenet_v3_large", "block15/attention/excite/bias", "features.15.block.2.fc2.bias"),
    ("mobilenet_v3_small", "block1/project/norm/mean", "features.1.block.2.1.running_mean"),
    ("mobilenet_v3_small", "block2/project/conv/kernel", "features.2.block.2.0.weight"),
    ("shufflenet_v2_x1_0", "stage3_block1/shortcut_pointwise/norm/bias", "stage3.0.branch1.3.bias"),
    ("efficientnet_b7", "stage1_block4/attention/squeeze/kernel", "features.1.3.block.1.fc1.weight"),
    ("efficientnet_b7", "stage6_block13/depthwise/conv/kernel", "features.6.12.block.1.0.weight"),
    ("regnet_y_400mf", "stage3_block6/conv2/kernel", "trunk_output.block3.block3-5.f.b.0.weight"),
    ("regnet_x_32gf", "stage2_block1/shortcut_norm/scale", "trunk_output.block2.block2-0.proj.1.weight"),
    ("convnext_tiny", "downsample3_conv/kernel", "features.4.1.weight"),
    ("convnext_tiny", "stage4_block1/layer_scale", "features.7.0.layer_scale"),
    ("vit_b_16", "layer12/attention/qkv/kernel", "encoder.layers.encoder_layer_11.self_attention.in_proj_weight"),
    ("vit_b_16", "position_embedding", "encoder.pos_embedding"),
]


@pytest.mark.parametrize(("model", "ours", "theirs"), NAMES)
def test_names_are_torchvisions(model, ours, theirs):
    assert their_name(tuple(ours.split("/")), NAMINGS[model]) == theirs
    golden = GOLDENS / f"{model}.npz"
    assert not golden.exists() or theirs in np.load(golden)["names"]


def test_dense_layers_and_scales_become_1x1_convolutions_and_back():
    params: Any = {
        "squeeze": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.arange(3.0)},
        "layer_scale": np.arange(4.0),
    }
    naming = Naming((), spatial=frozenset({"squeeze", "layer_scale"}))
    exported = export_state_dict({"params": params}, naming)
    assert {name: tensor.shape for name, tensor in exported.items()} == {
        "squeeze.weight": (3, 2, 1, 1),
        "squeeze.bias": (3,),
        "layer_scale": (4, 1, 1),
    }
    assert exported["squeeze.weight"][2, 1] == params["squeeze"]["kernel"][1, 2]
    back = import_state_dict(exported, {"params": params}, naming)["params"]
    jax.tree.map(np.testing.assert_array_equal, back, params)
