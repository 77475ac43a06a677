"""Grad-CAM against closed forms, and against a tail computed by hand in numpy; its drawing."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from jaxcnn.errors import UserError
from jaxcnn.layers.conv import conv_xla
from jaxcnn.layers.features import PERTURBATIONS, feature_pyramid
from jaxcnn.models import MODELS
from jaxcnn.models.efficientnet import ROWS as EFFICIENTNET
from jaxcnn.models.inception_v3 import InceptionA
from jaxcnn.models.mobilenet_v2 import ROWS as MOBILENET_V2
from jaxcnn.models.mobilenet_v3 import SMALL as MOBILENET_V3
from jaxcnn.models.resnet import CifarResNet
from jaxcnn.results.explain import choose_layer, grad_cam, overlay


@pytest.fixture(autouse=True)
def quick_to_trace(monkeypatch):
    monkeypatch.setattr("jaxcnn.layers.conv._conv", lambda x, kernel, window, *_: conv_xla(x, kernel, window))


def random_variables(model, image_shape, seed=0):
    """Also of heads that begin at zero; scales and variances stay positive."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))
    generator = np.random.default_rng(seed)
    fill = lambda leaf: jnp.asarray(generator.uniform(0.1, 0.4, leaf.shape) * generator.choice([-1, 1.4], leaf.shape))
    variables = jax.tree.map(lambda leaf: fill(leaf).astype(jnp.float32), shapes)
    return {**variables, "batch_stats": jax.tree.map(jnp.abs, variables.get("batch_stats", {}))}


def random_images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def explained(model, variables, images, targets, *, layer):
    """(the layer's features, a heat map a target, logits), all in one program."""

    @jax.jit
    def everything(variables, images):
        found = [grad_cam(model, variables, images, layer=layer, target=target) for target in targets]
        return feature_pyramid(model, variables, images)[layer], [heat for heat, _ in found], found[0][1]

    return jax.tree.map(np.asarray, everything(variables, images))


def enlarged(maps, height, width):
    return np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in maps])


def test_with_a_linear_head_on_averages_it_is_the_class_activation_map():
    """Of Zhou et al. 2016: the maps weighted by the head's weights, which over the places is the gradient's mean."""
    model = CifarResNet(num_classes=5, num_blocks=1, width=0.5)
    variables, images = random_variables(model, (24, 20, 3)), random_images(4, 24, 20, 3)
    assert choose_layer(model, variables, (24, 20, 3)) == "stage3"
    features, heats, found = explained(model, variables, images, [None, np.full(4, 2)], layer="stage3")
    kernel, bias = (np.asarray(variables["params"]["head"][name]) for name in ("kernel", "bias"))
    logits = features.mean(axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
    for heat, classes in zip(heats, (logits.argmax(axis=1), np.full(4, 2)), strict=True):
        maps = np.maximum(np.einsum("bhwc,cb->bhw", features, kernel[:, classes]), 0) / (6 * 5)
        assert heat.shape == (4, 24, 20)
        assert (maps > 0).any(axis=(1, 2)).all()
        np.testing.assert_allclose(heat, enlarged(maps, 24, 20), rtol=1e-3, atol=1e-4 * maps.max())


def test_through_a_tail_that_is_not_linear_it_is_what_finite_differences_give():
    model, layer = MODELS["cnn"](num_classes=3), "stage2"
    variables, images = random_variables(model, (8, 8, 1)), random_images(2, 8, 8, 1)
    assert choose_layer(model, variables, (8, 8, 1)) == layer
    features, (heat,), logits = explained(model, variables, images, [None], layer=layer)
    features = features.astype(np.float64)
    weights = {name: jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"][name]) for name in
               ("dense1", "head")}  # fmt: skip

    def tail(maps):
        """Of maps [n, 4, 4, 64]: pool, dense, ReLU, head."""
        x = maps.reshape(len(maps), 2, 2, 2, 2, 64).max(axis=(2, 4)).reshape(len(maps), -1)
        x = np.maximum(x @ weights["dense1"]["kernel"] + weights["dense1"]["bias"], 0)
        return x @ weights["head"]["kernel"] + weights["head"]["bias"]

    np.testing.assert_allclose(logits, tail(features), rtol=1e-4)
    shifts = 1e-5 * np.eye(4 * 4 * 64).reshape(-1, 4, 4, 64)
    for row, maps in enumerate(features):
        target = int(logits[row].argmax())
        gradient = ((tail(maps + shifts) - tail(maps - shifts))[:, target] / 2e-5).reshape(4, 4, 64)
        expected = np.maximum((maps * gradient.mean(axis=(0, 1))).sum(axis=-1), 0)
        assert expected.max() > 0
        np.testing.assert_allclose(heat[row], enlarged([expected], 8, 8)[0], rtol=1e-3, atol=1e-4 * expected.max())


FAMILIES = [
    ("airbench94", {}, 32), ("alexnet", {"stem": "small"}, 32), ("densenet121", {"stage_sizes": (1, 1)}, 32),
    ("efficientnet_b0", {"rows": EFFICIENTNET[:2]}, 32), ("googlenet", {"stages": [[(8,) * 6]]}, 64),
    ("inception_v3", {"stages": [[partial(InceptionA, pool_features=32)]]}, 75), ("lenet5", {}, 28),
    ("mixer_s16", {"num_blocks": 1}, 64), ("mobilenet_v1", {"stage_sizes": (1, 1, 1, 1, 1)}, 64),
    ("mobilenet_v2", {"rows": MOBILENET_V2[:2]}, 32), ("mobilenet_v3_small", {"rows": MOBILENET_V3[:2]}, 32),
    ("preact_resnet18", {"stage_sizes": (1, 1)}, 32), ("resnet18", {"stage_sizes": (1, 1)}, 32),
    ("regnet_x_800mf", {"stages": ((16, 1), (32, 1))}, 32), ("convnext_tiny", {"stage_sizes": (1, 1)}, 64),
    ("shufflenet_v2_x0_5", {"stage_sizes": (1, 1, 1)}, 64), ("squeezenet1_1", {}, 64), ("vgg11", {"stem": "small"}, 32),
    ("vit_ti_16", {"num_layers": 4}, 64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keywords", "size"), FAMILIES)
def test_the_map_explained_by_bears_on_the_logits(name, keywords, size):
    """By a walk through the program, of which only the trace is needed: the logits depend on the perturbation."""
    model, images = MODELS[name](num_classes=10, **keywords), jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    shown = jax.eval_shape(partial(feature_pyramid, model), variables, images)
    layer = getattr(model, "explained_by", max(name for name, x in shown.items() if x.ndim == 4))

    def logits(perturbation, variables):
        return model.apply({**variables, PERTURBATIONS: {layer: perturbation}}, images, train=False)

    program = jax.make_jaxpr(logits)(shown[layer], variables).jaxpr
    reached = {program.invars[0]}
    for equation in program.eqns:
        if any(not isinstance(each, Literal) and each in reached for each in equation.invars):
            reached.update(equation.outvars)
    assert program.outvars[0] in reached


def test_of_a_vision_transformer_the_tokens_are_laid_out_as_the_patches():
    """The gradient by the patches' tokens, each computed by differences along a random direction."""
    model = MODELS["vit_ti_16"](num_classes=3, features=12, hidden=16, num_layers=4, stem="small")
    variables, images = random_variables(model, (12, 8, 3)), jnp.asarray(random_images(1, 12, 8, 3))
    assert choose_layer(model, variables, (12, 8, 3)) == "stage3"
    direction = random_images(1, 3, 2, 12)

    def first_logit(perturbation):
        logits = model.apply({**variables, PERTURBATIONS: {"stage3": perturbation}}, images, train=False)
        assert isinstance(logits, jax.Array)
        return logits[0, 0]

    @jax.jit
    def everything():
        features = feature_pyramid(model, variables, images)["stage3"]
        ends = jax.lax.map(first_logit, jnp.stack([1e-2 * direction, -1e-2 * direction]))
        gradient = jax.grad(first_logit)(jnp.zeros_like(features))
        heat, logits = grad_cam(model, variables, images, layer="stage3", target=0)
        return features, gradient, ends, first_logit(jnp.zeros_like(features)) - logits[0, 0], heat

    features, gradient, ends, difference, heat = jax.tree.map(np.asarray, everything())
    assert features.shape == (1, 3, 2, 12)
    assert difference == 0
    np.testing.assert_allclose((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-2, rtol=2e-2)
    expected = np.maximum((features * gradient.mean(axis=(1, 2), keepdims=True)).sum(axis=-1), 0)
    np.testing.assert_allclose(heat, enlarged(expected, 12, 8), rtol=1e-3, atol=1e-6)


def test_says_what_cannot_be_explained():
    model = MODELS["mlp"](num_classes=3)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))
    with pytest.raises(UserError, match="MLP shows no map"):
        choose_layer(model, variables, (8, 8, 1))
    model = MODELS["cnn"](num_classes=3)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))
    with pytest.raises(UserError, match=r"layer='stage3' is no map of CNN; did you mean 'stage"):
        choose_layer(model, variables, (8, 8, 1), "stage3")


@pytest.mark.parametrize("channels", [1, 3])
def test_heat_is_drawn_over_the_image(channels):
    image = np.full((30, 50, channels), 128, np.uint8)
    heat = np.zeros((30, 50), np.float32)
    heat[:, 40:] = 7e-4
    drawn = overlay(image, heat)
    assert drawn.shape == (150, 250, 3)
    red, green, blue = drawn[75, 240].astype(int)
    assert red > green + 30
    assert red > blue + 30
    red, green, blue = overlay(image, np.zeros_like(heat), opacity=1.0)[75, 100].astype(int)
    assert max(red, green, blue) == blue, "no heat at all is no division by zero"
    np.testing.assert_array_equal(overlay(image, heat, opacity=0.0), np.full((150, 250, 3), 128))
    assert overlay(np.zeros((300, 260, 3), np.uint8), np.zeros((300, 260), np.float32)).shape == (300, 260, 3)
