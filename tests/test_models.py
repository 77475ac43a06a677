"""Models: their sizes as published, their contract, and batch normalisation against numpy."""

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from jaxcnn.config import ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.layers.blocks import PatchConv, StochasticDepth, same_conv, symmetric_conv, to_multiple
from jaxcnn.layers.conv_cpu import conv_xla
from jaxcnn.layers.dropout import drawn_by_example
from jaxcnn.layers.features import AUXILIARY, feature_pyramid
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.models import MODELS
from jaxcnn.models.efficientnet import ROWS as EFFICIENTNET
from jaxcnn.models.inception_v3 import InceptionA, InceptionB, InceptionD, InceptionE
from jaxcnn.models.make import make_model
from jaxcnn.models.mobilenet_v2 import ROWS as MOBILENET_V2
from jaxcnn.models.mobilenet_v2 import Row
from jaxcnn.models.mobilenet_v3 import SMALL as MOBILENET_V3_SMALL
from jaxcnn.models.published import PUBLISHED
from jaxcnn.models.regnet import stages_of
from jaxcnn.models.resnet import padded_shortcut
from jaxcnn.models.shufflenet_v2 import channel_shuffle
from jaxcnn.training.finetune import layers_of
from jaxcnn.training.parallel import make_parallel

# table 1 of the paper
MIXER_S = dict(blocks=8, features=512, token_hidden=256, channel_hidden=2048)
MIXER_B = dict(blocks=12, features=768, token_hidden=384, channel_hidden=3072)
MIXER_L = dict(blocks=24, features=1024, token_hidden=512, channel_hidden=4096)

MIXER_TINY = dict(num_blocks=1, features=16, token_hidden=8, channel_hidden=16)

CIFAR, IMAGENET, MNIST, DIGITS = (32, 32, 3), (224, 224, 3), (28, 28, 1), (8, 8, 1)


def cbam_counts(stage_sizes: tuple[int, ...], channels: int) -> int:
    """What CBAM adds: two dense layers and a 7x7 convolution of two maps in every block."""
    widths = [channels * 2**stage for stage in range(4)]
    return sum(
        size * (2 * width * width // 16 + width // 16 + width + 98)
        for size, width in zip(stage_sizes, widths, strict=True)
    )


def preact_count(stage_sizes: tuple[int, ...], *, stem: int, features: int) -> int:
    """Pre-activated basic blocks: two norms, two 3x3 convolutions, and a 1x1 one where the width changes."""
    total, width = 27 * stem, stem
    for stage, size in enumerate(stage_sizes):
        out = features * 2**stage
        for _ in range(size):
            total += 2 * width + 9 * width * out + 2 * out + 9 * out * out
            total += width * out if width != out else 0
            width = out
    return total + 2 * width + 10 * width + 10


def mixer_count(*, patch: int, blocks: int, features: int, token_hidden: int, channel_hidden: int) -> int:
    """Two layer norms and two perceptrons a block, on 224x224 pixels."""
    tokens = (224 // patch) ** 2
    perceptrons = sum(
        2 * size * hidden + size + hidden for size, hidden in ((tokens, token_hidden), (features, channel_hidden))
    )
    stem, head = 3 * patch**2 * features + features, 2 * features + features * 1000 + 1000
    return stem + blocks * (4 * features + perceptrons) + head


def densenet_bc_count(*, layers: int, growth: int) -> int:
    """Three stages for CIFAR: norms and convolutions of the layers, transitions, the last norm, the head."""
    features = 2 * growth
    total = 27 * features
    for stage in range(3):
        for _ in range(layers):
            total += 2 * features + features * 4 * growth + 8 * growth + 36 * growth * growth
            features += growth
        if stage < 2:
            total += 2 * features + features * (features // 2)
            features //= 2
    return total + 2 * features + 10 * features + 10


SINCE_2017 = ("mobilenet", "shufflenet", "efficientnet", "regnet", "convnext", "vit")

# name, keywords, image shape, learnable parameters: for ResNets the published counts, else by hand
COUNTS = [
    ("mlp", {"num_classes": 10}, MNIST, 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10),
    ("lenet5", {"num_classes": 10}, MNIST, 61_706),
    ("cnn", {"num_classes": 10}, MNIST, 824_458),
    ("cnn", {"num_classes": 10}, DIGITS, 320 + 18_496 + (2 * 2 * 64 + 1) * 256 + 2_570),
    ("resnet20", {"num_classes": 10}, CIFAR, 269_722),
    ("resnet32", {"num_classes": 10}, CIFAR, 464_154),
    ("resnet44", {"num_classes": 10}, CIFAR, 658_586),
    ("resnet56", {"num_classes": 10}, CIFAR, 853_018),
    ("resnet110", {"num_classes": 10}, CIFAR, 1_727_962),
    ("resnet18", {"num_classes": 1000}, IMAGENET, 11_689_512),
    ("resnet34", {"num_classes": 1000}, IMAGENET, 21_797_672),
    ("resnet50", {"num_classes": 1000}, IMAGENET, 25_557_032),
    ("resnet101", {"num_classes": 1000}, IMAGENET, 44_549_160),
    ("resnet152", {"num_classes": 1000}, IMAGENET, 60_192_808),
    ("resnet18", {"num_classes": 10, "stem": "small"}, CIFAR, 11_173_962),
    ("resnext50_32x4d", {"num_classes": 1000}, IMAGENET, 25_028_904),  # torchvision's counts
    ("resnext101_32x8d", {"num_classes": 1000}, IMAGENET, 88_791_336),
    ("resnext101_64x4d", {"num_classes": 1000}, IMAGENET, 83_455_272),
    ("wide_resnet50_2", {"num_classes": 1000}, IMAGENET, 68_883_240),
    ("wide_resnet101_2", {"num_classes": 1000}, IMAGENET, 126_886_696),
    ("seresnet18", {"num_classes": 1000}, IMAGENET, 11_778_592),  # timm's legacy and seresnet counts
    ("seresnet50", {"num_classes": 1000}, IMAGENET, 28_088_024),
    ("cbam_resnet18", {"num_classes": 1000}, IMAGENET, 11_689_512 + cbam_counts((2, 2, 2, 2), 64)),
    ("cbam_resnet50", {"num_classes": 1000}, IMAGENET, 25_557_032 + cbam_counts((3, 4, 6, 3), 256)),
    ("preact_resnet18", {"num_classes": 10}, CIFAR, preact_count((2, 2, 2, 2), stem=64, features=64)),
    ("preact_resnet34", {"num_classes": 10}, CIFAR, preact_count((3, 4, 6, 3), stem=64, features=64)),
    ("preact_resnet164", {"num_classes": 10}, CIFAR, 1_703_258),
    ("wrn_16_4", {"num_classes": 10}, CIFAR, preact_count((2, 2, 2), stem=16, features=64)),
    ("wrn_28_10", {"num_classes": 10}, CIFAR, 36_479_194),
    ("wrn_40_2", {"num_classes": 10}, CIFAR, preact_count((6, 6, 6), stem=16, features=32)),
    # torchvision's counts; without auxiliary heads, which count in training only
    ("alexnet", {"num_classes": 1000}, IMAGENET, 61_100_840),
    ("vgg11", {"num_classes": 1000}, IMAGENET, 132_863_336),
    ("vgg13", {"num_classes": 1000}, IMAGENET, 133_047_848),
    ("vgg16", {"num_classes": 1000}, IMAGENET, 138_357_544),
    ("vgg19", {"num_classes": 1000}, IMAGENET, 143_667_240),
    ("vgg11_bn", {"num_classes": 1000}, IMAGENET, 132_868_840),
    ("vgg13_bn", {"num_classes": 1000}, IMAGENET, 133_053_736),
    ("vgg16_bn", {"num_classes": 1000}, IMAGENET, 138_365_992),
    ("vgg19_bn", {"num_classes": 1000}, IMAGENET, 143_678_248),
    ("vgg16_bn", {"num_classes": 10, "stem": "small"}, CIFAR, 14_728_266),  # the usual CIFAR count
    ("squeezenet1_0", {"num_classes": 1000}, IMAGENET, 1_248_424),
    ("squeezenet1_1", {"num_classes": 1000}, IMAGENET, 1_235_496),
    ("googlenet", {"num_classes": 1000}, IMAGENET, 6_624_904),
    ("inception_v3", {"num_classes": 1000}, (299, 299, 3), 23_834_568),
    ("densenet121", {"num_classes": 1000}, IMAGENET, 7_978_856),
    ("densenet161", {"num_classes": 1000}, IMAGENET, 28_681_000),
    ("densenet169", {"num_classes": 1000}, IMAGENET, 14_149_480),
    ("densenet201", {"num_classes": 1000}, IMAGENET, 20_013_928),
    ("densenet_bc_100_12", {"num_classes": 10}, CIFAR, densenet_bc_count(layers=16, growth=12)),
    *(
        (name, {"num_classes": 1000}, IMAGENET, mixer_count(patch=patch, **sizes))
        for name, patch, sizes in (
            ("mixer_s32", 32, MIXER_S),
            ("mixer_s16", 16, MIXER_S),
            ("mixer_b32", 32, MIXER_B),
            ("mixer_b16", 16, MIXER_B),
            ("mixer_l16", 16, MIXER_L),
        )
    ),
    *(
        (name, {"num_classes": 1000}, (published.image_size, published.image_size, 3), published.num_params)
        for name, published in PUBLISHED.items()
        if name.startswith(SINCE_2017)
    ),
    # counted with batch norm's scales, which are fixed: two, for airbench96 three, of each width
    ("airbench93", {"num_classes": 10}, CIFAR, 569_656 - 2 * (64 + 128 + 128)),
    ("airbench94", {"num_classes": 10}, CIFAR, 1_972_792 - 2 * (64 + 256 + 256)),
    ("airbench94_muon", {"num_classes": 10}, CIFAR, 1_972_792 - 2 * (64 + 256 + 256)),
    ("airbench95", {"num_classes": 10}, CIFAR, 4_606_520 - 2 * (128 + 384 + 384)),
    ("airbench96", {"num_classes": 10}, CIFAR, 9_918_776 - 3 * (128 + 384 + 512)),
]

# variants that repeat the rule of a sibling: all of them take half a minute to trace
SLOW_COUNTS = (
    *("mobilenet_v3_large", "shufflenet_v2_x0_5", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *(f"efficientnet_b{number}" for number in range(1, 8)),
    *(f"efficientnet_lite{number}" for number in range(1, 5)),
    *(name for name in MODELS if name.startswith("regnet") and name != "regnet_y_400mf"),
    *("convnext_small", "convnext_base", "convnext_large", "vit_s_16", "vit_b_32", "vit_l_16", "vit_l_32"),
)

# one of each kind, shallow, on small images: enough where depth changes nothing, and quick to compile
KINDS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("mlp", {}, DIGITS),
    ("lenet5", {}, (12, 12, 1)),
    ("cnn", {}, DIGITS),
    ("resnet20", {"num_blocks": 1}, (8, 8, 3)),
    ("resnet18", {"stem": "small", "stage_sizes": (1, 1)}, (8, 8, 3)),
    ("resnet50", {"stem": "imagenet", "stage_sizes": (1,)}, (16, 16, 3)),
    ("airbench96", {"widths": (24, 24, 24)}, (25, 25, 3)),
    ("alexnet", {"width": 0.02, "stem": "imagenet"}, (64, 64, 3)),
    ("vgg11_bn", {"width": 0.1, "stem": "imagenet", "stage_sizes": (1, 1)}, (8, 8, 3)),
    ("squeezenet1_1", {"stem": "small", "fires": (((4, 8),), ((4, 8),))}, (8, 8, 3)),
    ("googlenet", {"stem": "small", "stages": ((), (6 * (8,),))}, (8, 8, 3)),
    ("inception_v3", {"stem": "small", "stages": ((), (), (partial(InceptionE),))}, (8, 8, 3)),
    ("densenet_bc_100_12", {"stage_sizes": (2, 1)}, (8, 8, 3)),
    ("mixer_s16", {"stem": "small", **MIXER_TINY}, (8, 8, 3)),
    ("mobilenet_v1", {"stage_sizes": (1,), "stem": "small", "width": 0.25}, (8, 8, 3)),
    ("mobilenet_v2", {"rows": (Row(2, 32, 1, 1),), "width": 0.5, "stem": "small"}, (8, 8, 3)),
    ("mobilenet_v3_small", {"rows": MOBILENET_V3_SMALL[3:4], "hidden": 16, "stem": "small"}, (8, 8, 3)),
    ("shufflenet_v2_x0_5", {"features": (16, 16), "stage_sizes": (2,), "stem": "small"}, (8, 8, 3)),
    ("efficientnet_b0", {"rows": EFFICIENTNET[:1], "width": 0.5}, (8, 8, 3)),
    ("efficientnet_lite0", {"rows": EFFICIENTNET[:1], "width": 0.5}, (8, 8, 3)),
    ("regnet_y_400mf", {"stages": ((16, 1),), "stem": "small"}, (8, 8, 3)),
    ("convnext_tiny", {"stage_sizes": (1, 1), "features": 8, "layer_scale": 1.0}, (8, 8, 3)),
    ("vit_b_16", {"num_layers": 1, "features": 16, "hidden": 16, "num_heads": 2, "stem": "small"}, (8, 8, 3)),
]
NORMLESS = ("mlp", "lenet5", "cnn", "alexnet", "squeezenet1_1", "mixer_s16", "convnext_tiny", "vit_b_16")
COMPILED = [pytest.param(*kind, marks=pytest.mark.slow if kind[0] == "inception_v3" else ()) for kind in KINDS]

# one module a stage
SHORT_GOOGLENET = {"stages": [[(8,) * 6]] * 3}
SHORT_INCEPTION = {"stages": [[partial(InceptionA, pool_features=32)], [partial(InceptionB)], [partial(InceptionD)]]}


def build(name: str, **keywords: Any) -> nn.Module:
    return MODELS[name](**{"num_classes": 10, **keywords})


def shapes_of(model: nn.Module, image_shape: tuple[int, ...], *, train: bool = False) -> Any:
    """In training auxiliary heads have parameters too."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return jax.eval_shape(lambda: model.init(keys, jnp.zeros((2, *image_shape)), train=train))


def random_variables(model: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """He-normal kernels by numpy, since compiling a model's own initialisation takes seconds."""
    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        match path[-1].key:
            case "kernel":
                fan_in = math.prod(leaf.shape[:-1])
                return jnp.asarray(rng.normal(scale=(2 / fan_in) ** 0.5, size=leaf.shape), leaf.dtype)
            case "bias":  # not zero: behind a linear bottleneck a mean would stay zero
                return jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), leaf.dtype)
            case "scale" | "var":
                return jnp.ones(leaf.shape, leaf.dtype)
            case _:
                return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(model, image_shape, train=True))


def random_images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))


@pytest.fixture
def quick_to_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA's convolution alone, without ours for CPUs: half the time to trace a deep network."""
    monkeypatch.setattr("jaxcnn.layers.conv._conv", lambda x, kernel, window, *_: conv_xla(x, kernel, window))


@pytest.mark.parametrize(
    ("name", "keywords", "image_shape", "count"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] in SLOW_COUNTS)) for case in COUNTS],
)
@pytest.mark.usefixtures("quick_to_trace")
def test_parameter_count_is_the_published_one(
    name: str, keywords: dict[str, Any], image_shape: tuple[int, ...], count: int
) -> None:
    params = shapes_of(MODELS[name](**keywords), image_shape)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_every_model_is_counted() -> None:
    assert {name for name, *_ in COUNTS} == set(MODELS)


def test_published_figures_are_of_the_models_that_are_here() -> None:
    counts = {(name, image_shape[0]): count for name, _, image_shape, count in COUNTS}
    for name, published in PUBLISHED.items():
        assert counts[name, published.image_size] == published.num_params
        assert published.macs is None or 0.0001 < published.macs < 1000
        assert published.accuracy is None or 50 < published.accuracy < 95


@pytest.mark.parametrize(("name", "keywords", "image_shape"), KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.usefixtures("quick_to_trace")
def test_computes_in_dtype_with_float32_parameters_and_logits(
    name: str, keywords: dict[str, Any], image_shape: tuple[int, ...], dtype: Any
) -> None:
    model = build(name, dtype=dtype, **keywords)
    variables = shapes_of(model, image_shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}

    def forward(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False, capture_intermediates=True, mutable=["intermediates"])

    logits, state = jax.eval_shape(forward, variables, jax.ShapeDtypeStruct((3, *image_shape), jnp.float32))
    assert (logits.shape, logits.dtype) == ((3, 10), jnp.float32)
    inner = {
        key: value
        for key, value in state["intermediates"].items()
        if key not in ("head", "head_dropout", "whiten", "__call__")
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(inner)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(("name", "keywords", "image_shape"), COMPILED)
@pytest.mark.usefixtures("quick_to_trace")
def test_evaluation_depends_on_the_image_alone(
    name: str, keywords: dict[str, Any], image_shape: tuple[int, ...]
) -> None:
    model = build(name, **keywords)
    images = random_images(4, *image_shape)
    variables = random_variables(model, image_shape)
    evaluate = jax.jit(partial(model.apply, train=False))  # neither keys nor mutable collections
    logits, among_others = evaluate(variables, images), evaluate(variables, images.at[1:].multiply(-3))
    assert np.isfinite(logits).all()
    assert np.std(logits) > 1e-3
    np.testing.assert_allclose(logits[:1], among_others[:1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits[1:], among_others[1:], rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "keywords", "image_shape"), [kind for kind in COMPILED if kind.values[0] not in NORMLESS]
)
@pytest.mark.usefixtures("quick_to_trace")
def test_training_moves_every_running_statistic(
    name: str, keywords: dict[str, Any], image_shape: tuple[int, ...]
) -> None:
    model = build(name, **keywords)
    variables = random_variables(model, image_shape)
    train = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}))
    _, state = train(variables, random_images(4, *image_shape))
    moved = jax.tree.map(lambda old, new: bool(jnp.all(old != new)), variables["batch_stats"], state["batch_stats"])
    assert set(jax.tree.leaves(moved)) == {True}


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_dropout_acts_in_training_only(name: str) -> None:
    images = random_images(4, *DIGITS)
    model = build(name, dropout_rate=0.5)
    variables = random_variables(model, DIGITS)

    def train(seed: int) -> Any:
        return model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(train(1), train(1))
    assert not np.allclose(train(1), train(2))
    without = build(name).apply(variables, images, train=True)
    np.testing.assert_array_equal(model.apply(variables, images, train=False), without)


class Dropping(nn.Module):
    """All that drops, on inputs of which all are kept or 0: windows of an example, recomputation, whole branches."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        windows = nn.remat(nn.Dropout)(self.rate, deterministic=False)(x.reshape(-1, *x.shape[2:]))
        x = nn.Dropout(self.rate)(windows.reshape(x.shape), deterministic=False)
        return StochasticDepth(self.rate)(x, train=True)


def test_dropout_is_drawn_by_example() -> None:
    def masks(start: int, stop: int, rate: float = 0.2) -> np.ndarray:
        with drawn_by_example(jnp.arange(start, stop)):
            return np.asarray(Dropping(rate).apply({}, jnp.ones((stop - start, 2, 64)), rngs={"dropout": key}))

    key = jax.random.key(0)
    whole = masks(0, 500)
    np.testing.assert_array_equal(np.concatenate([masks(0, 100), masks(100, 500)]), whole)
    kept = whole.any(axis=(1, 2))
    assert abs(kept.mean() - 0.8) < 0.06  # three standard errors
    assert abs((whole[kept] > 0).mean() - 0.8**2) < 0.01
    np.testing.assert_allclose(np.unique(whole), [0, 0.8**-3], rtol=1e-6)
    assert abs(np.corrcoef(whole[kept][:, 0].ravel() > 0, whole[kept][:, 1].ravel() > 0)[0, 1]) < 0.02  # windows differ
    np.testing.assert_array_equal(masks(0, 4, rate=0.0), np.ones((4, 2, 64)))


@pytest.mark.parametrize(("name", "image_shape"), [("lenet5", (8, 8, 1)), ("lenet5", (28, 11, 1)), ("cnn", (3, 8, 1))])
def test_images_too_small_for_the_model_are_the_users_error(name: str, image_shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"^{name} needs images of at least .* got {image_shape[0]}x{image_shape[1]}"):
        shapes_of(build(name), image_shape)


@pytest.mark.parametrize(
    ("name", "keywords", "smallest"),
    [
        ("alexnet", {}, 63),
        ("alexnet", {"stem": "small"}, 15),
        ("vgg11", {}, 32),
        ("squeezenet1_0", {}, 21),
        ("squeezenet1_1", {}, 17),
        ("squeezenet1_1", {"stem": "small"}, 4),
        ("googlenet", SHORT_GOOGLENET, 15),
        ("inception_v3", SHORT_INCEPTION, 75),
        ("inception_v3", {"stem": "small", **SHORT_INCEPTION}, 7),
        ("densenet121", {"stage_sizes": (1, 1, 1, 1)}, 29),
        ("densenet121", {"stage_sizes": (1, 1, 1, 1), "stem": "small"}, 8),
        ("mixer_s16", {"num_blocks": 1}, 16),
    ],
)
@pytest.mark.usefixtures("quick_to_trace")
def test_smallest_images(name: str, keywords: dict[str, Any], smallest: int) -> None:
    shapes_of(build(name, **keywords), (smallest, smallest, 3), train=True)
    with pytest.raises(UserError, match=rf"needs images of at least {smallest}x{smallest} .* got {smallest - 1}x99: "):
        shapes_of(build(name, **keywords), (smallest - 1, 99, 3))


def test_patches_cover_the_image() -> None:
    with pytest.raises(UserError, match=r"patches of 4x4 pixels, .* cover 32x30: .*image_size=28\b"):
        shapes_of(build("mixer_s16", stem="small"), (32, 30, 3))


@pytest.mark.parametrize(
    ("name", "keywords", "image_shape", "expected"),
    [
        ("mlp", {}, MNIST, {"stage1": (1, 1, 512), "stage2": (1, 1, 512), "pooled": (512,)}),
        ("lenet5", {}, MNIST, {"stage1": (28, 28, 6), "stage2": (10, 10, 16), "pooled": (84,)}),
        ("cnn", {}, MNIST, {"stage1": (28, 28, 32), "stage2": (14, 14, 64), "pooled": (256,)}),
        ("alexnet", {}, IMAGENET, {
            "stage1": (55, 55, 64), "stage2": (27, 27, 192), "stage3": (13, 13, 256), "pooled": (4096,),
        }),
        ("vgg11", {}, CIFAR, {
            "stage1": (32, 32, 64), "stage2": (16, 16, 128), "stage3": (8, 8, 256), "stage4": (4, 4, 512),
            "stage5": (2, 2, 512), "pooled": (4096,),
        }),
        ("squeezenet1_1", {}, IMAGENET, {
            "stage1": (111, 111, 64), "stage2": (55, 55, 128), "stage3": (27, 27, 256), "stage4": (13, 13, 512),
            "pooled": (512,),
        }),
        ("googlenet", SHORT_GOOGLENET, IMAGENET, {
            "stage1": (112, 112, 64), "stage2": (56, 56, 192), "stage3": (28, 28, 32), "stage4": (14, 14, 32),
            "stage5": (7, 7, 32), "pooled": (32,),
        }),
        ("inception_v3", SHORT_INCEPTION, (299, 299, 3), {
            "stage1": (147, 147, 64), "stage2": (71, 71, 192), "stage3": (35, 35, 256), "stage4": (17, 17, 736),
            "stage5": (8, 8, 1248), "pooled": (1248,),
        }),
        ("densenet_bc_100_12", {"stage_sizes": (2, 2, 2)}, CIFAR, {
            "stage1": (32, 32, 48), "stage2": (16, 16, 48), "stage3": (8, 8, 48), "pooled": (48,),
        }),
        ("mixer_s16", {}, IMAGENET, {"stage1": (14, 14, 512), "pooled": (512,)}),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quick_to_trace")
def test_stages_show_their_features(
    name: str, keywords: dict[str, Any], image_shape: tuple[int, ...], expected: dict[str, Any]
) -> None:
    model = build(name, **keywords)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    shown = jax.eval_shape(partial(feature_pyramid, model), shapes_of(model, image_shape), images)
    assert {stage: x.shape[1:] for stage, x in shown.items()} == expected


CONTRACT = [
    *(
        (name, {**keywords, "num_layers": 4} if name == "vit_b_16" else keywords, shape)
        for name, keywords, shape in KINDS
    ),
    ("preact_resnet18", {"stage_sizes": (1, 1)}, (8, 8, 3)),
]
# Parameters of more than one axis that are no kernels: they never decay, and no initialiser draws them anew.
NO_KERNELS = {"class_token", "position_embedding"}


def test_every_file_of_models_has_a_contract() -> None:
    def file_of(name: str) -> str:
        model: Any = MODELS[name]
        return str(getattr(model, "func", model).__module__)

    assert {file_of(name) for name, *_ in CONTRACT} == {file_of(name) for name in MODELS}


@pytest.mark.parametrize(("name", "keywords", "image_shape"), CONTRACT)
@pytest.mark.usefixtures("quick_to_trace")
def test_a_model_keeps_what_docs_models_promises(
    name: str, keywords: dict[str, Any], image_shape: tuple[int, ...]
) -> None:
    """Names of layers and taps, which optim, finetune, explain, features and transfer read."""
    model = build(name, **keywords)
    variables = shapes_of(model, image_shape)
    assert set(variables) <= {"params", "batch_stats"}
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        assert (path[-1] == "kernel") == (leaf.ndim > 1 and path[-1] not in NO_KERNELS), path
    params = variables["params"]
    assert "head" in params
    *layers, head = layers_of(params)
    assert "head" in head
    for layer in layers:  # a norm belongs to a convolution of its name, or to the layer before
        assert not all("norm" in part for part in layer), layer

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    taps = jax.eval_shape(partial(feature_pyramid, model), variables, images)
    pooled = taps.pop("pooled")
    first = min(int(each.removeprefix("stage")) for each in taps)  # ShuffleNet V2's first stage is the paper's stage 2
    assert sorted(taps) == [f"stage{number}" for number in range(first, first + len(taps))]
    assert first <= 2
    assert all(each.ndim == 4 for each in taps.values())
    (head_kernel,) = (leaf for path, leaf in traverse_util.flatten_dict(params["head"]).items() if path[-1] == "kernel")
    before_head = params["hidden"]["kernel"] if "hidden" in params else head_kernel  # MobileNetV3 has a layer between
    assert pooled.shape == (2, before_head.shape[-2])
    assert head_kernel.shape[-1] == 10


@pytest.mark.parametrize(
    ("name", "keywords", "heads"),
    [
        ("googlenet", {"stages": [[], [(8,) * 6] * 4]}, ["auxiliary1", "auxiliary2"]),
        ("inception_v3", SHORT_INCEPTION, ["auxiliary"]),
    ],
)
@pytest.mark.usefixtures("quick_to_trace")
def test_auxiliary_heads_are_there_in_training_only(name: str, keywords: dict[str, Any], heads: list[str]) -> None:
    images = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32)

    def shown(train: bool, **more: Any) -> Any:
        model = build(name, **keywords, **more)
        variables = shapes_of(model, (75, 75, 3), train=train)
        apply = partial(model.apply, train=train, mutable=[AUXILIARY, "batch_stats"])
        _, state = jax.eval_shape(apply, variables, images, rngs={"dropout": jax.random.key(0)})
        return {path: x.shape for path, x in state.get(AUXILIARY, {}).items()}, set(variables["params"]) & set(heads)

    assert shown(train=True) == ({f"{head}_logits": (2, 10) for head in heads}, set(heads))
    assert shown(train=False) == ({}, set())
    assert shown(train=True, auxiliary_weight=0.0) == ({}, set())


def test_unknown_stem_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'small'"):
        shapes_of(build("resnet18", stem="smal"), CIFAR)


def test_parameter_tree_reads_like_the_paper() -> None:
    params = shapes_of(build("resnet50"), CIFAR)["params"]
    stages = [
        f"stage{stage}_block{block}" for stage, size in enumerate((3, 4, 6, 3), 1) for block in range(1, size + 1)
    ]
    assert set(params) == {"stem_conv", "stem_norm", *stages, "head"}
    inner = {"conv1", "norm1", "conv2", "norm2", "conv3", "norm3"}
    assert set(params["stage2_block2"]) == inner
    assert set(params["stage2_block1"]) == {*inner, "shortcut_conv", "shortcut_norm"}


def test_convolutions_of_residual_networks_start_he_normal_by_fan_out() -> None:
    conv = symmetric_conv(64, 3, dtype=jnp.float32, name="conv")
    params = conv.init(jax.random.key(0), jnp.zeros((1, 1, 1, 32)))["params"]
    assert set(params) == {"kernel"}
    assert params["kernel"].shape == (3, 3, 32, 64)
    assert float(params["kernel"].std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    # a plain normal, not a truncated one, which would end at 2.3 standard deviations
    assert float(jnp.abs(params["kernel"]).max()) > 3 * float(params["kernel"].std())


def test_strided_convolutions_pad_both_sides_alike() -> None:
    conv = symmetric_conv(1, 3, 2, dtype=jnp.float32, name="conv")
    outputs: Any = conv.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(outputs[0, ..., 0], [[4, 6], [6, 9]])  # XLA's SAME has them the other way round


def test_efficientnet_lite_pads_as_tensorflow_does() -> None:
    """A strided convolution pads an even side by one pixel, below and to the right, an odd one by one on each side."""
    conv = same_conv(1, 3, 2, dtype=jnp.float32, name="conv")
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    even: Any = conv.apply(ones, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(even[0, ..., 0], [[9, 6], [6, 4]])
    odd: Any = conv.apply(ones, jnp.ones((1, 5, 5, 1)))
    np.testing.assert_array_equal(odd[0, ..., 0], [[4, 6, 4], [6, 9, 6], [4, 6, 4]])


@pytest.mark.usefixtures("quick_to_trace")
def test_efficientnet_lites_ends_do_not_scale() -> None:
    model = build("efficientnet_lite4", depth=2.0, width=2.0, stem="small")
    params = shapes_of(model, (8, 8, 3))["params"]
    assert params["stem"]["conv"]["kernel"].shape == (3, 3, 3, 32)
    assert params["last"]["conv"]["kernel"].shape == (1, 1, 640, 1280)
    blocks = [name.partition("_")[0] for name in params if name.startswith("stage")]
    assert [blocks.count(f"stage{stage}") for stage in range(1, 8)] == [1, 4, 4, 6, 6, 8, 1]
    assert "attention" not in params["stage2_block1"]


def test_bottlenecks_have_their_stride_on_the_3x3_convolution() -> None:
    model = build("resnet50", stem="small", stage_sizes=(1, 1))
    variables = shapes_of(model, (8, 8, 3))

    def forward(variables: Any) -> Any:
        images = jnp.zeros((1, 8, 8, 3))
        return model.apply(variables, images, train=False, capture_intermediates=True, mutable=["intermediates"])

    block = jax.eval_shape(forward, variables)[1]["intermediates"]["stage2_block1"]
    shapes = {name: block[name]["__call__"][0].shape for name in ("conv1", "conv2", "conv3", "shortcut_conv")}
    assert shapes == {
        "conv1": (1, 8, 8, 128),
        "conv2": (1, 4, 4, 128),
        "conv3": (1, 4, 4, 512),
        "shortcut_conv": (1, 4, 4, 512),
    }


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        pytest.param("resnet20", {"num_blocks": 2}, marks=pytest.mark.slow),
        ("resnet50", {"stem": "small", "stage_sizes": (2,)}),
        pytest.param("densenet_bc_100_12", {"stage_sizes": (4,)}, marks=pytest.mark.slow),
    ],
)
def test_rematerialisation_changes_the_memory_only(name: str, keywords: dict[str, Any]) -> None:
    images = random_images(32, 16, 16, 3)
    plain = build(name, **keywords)
    variables = random_variables(plain, (16, 16, 3))
    gradients, bytes_kept = [], []
    for remat in (False, True):
        model = build(name, remat=remat, **keywords)
        assert jax.tree.map(lambda x: x.shape, variables) == jax.tree.map(
            lambda x: x.shape, shapes_of(model, (16, 16, 3))
        )

        def gradient(variables, images, model=model):
            def loss(params):
                logits, updated = model.apply(
                    {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
                )
                return jnp.square(logits).mean(), updated

            return jax.grad(loss, has_aux=True)(variables["params"])

        parallel = make_parallel("jit", num_devices=1)
        compiled = cast(Any, parallel.compile(gradient, sharded={})).lower(variables, images).compile()
        gradients.append(compiled(variables, images))
        bytes_kept.append(compiled.memory_analysis().temp_size_in_bytes)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), *gradients)
    assert bytes_kept[1] < 0.75 * bytes_kept[0]


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("squeezenet1_1", {"fires": [[(4, 8)]]}),
        ("googlenet", SHORT_GOOGLENET),
        ("inception_v3", SHORT_INCEPTION),
        ("densenet_bc_100_12", {"stage_sizes": (1, 1)}),
        ("mixer_s16", MIXER_TINY),
    ],
)
@pytest.mark.usefixtures("quick_to_trace")
def test_rematerialised_modules_keep_their_parameters_and_have_a_gradient(name: str, keywords: dict[str, Any]) -> None:
    plain, model = (build(name, stem="small", remat=remat, **keywords) for remat in (False, True))
    variables = shapes_of(plain, (16, 16, 3), train=True)
    assert shapes_of(model, (16, 16, 3), train=True) == variables

    def loss(params: Any, images: jax.Array) -> jax.Array:
        keys = {"dropout": jax.random.key(0)}
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs=keys)
        return jnp.square(logits).mean()

    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(variables["params"], jnp.zeros((2, 16, 16, 3)))
    assert any(equation.primitive.name.startswith("remat") for equation in jaxpr.eqns)


@pytest.mark.parametrize(
    ("name", "keywords", "image_shape"), [kind for kind in KINDS if kind[0].startswith(SINCE_2017)]
)
@pytest.mark.usefixtures("quick_to_trace")
def test_every_block_can_be_computed_again(name: str, keywords: dict[str, Any], image_shape: tuple[int, ...]) -> None:
    """Dropout and stochastic depth on; traced, not compiled."""
    model = build(name, remat=True, **keywords)
    variables = shapes_of(build(name, **keywords), image_shape)

    def loss(params: Any, variables: Any) -> Any:
        keys = {"dropout": jax.random.key(0)}
        inputs = jnp.zeros((2, *image_shape))
        logits, _ = model.apply({**variables, "params": params}, inputs, train=True, rngs=keys, mutable=["batch_stats"])
        return logits.sum()

    traced = jax.make_jaxpr(jax.grad(loss))(variables["params"], variables)
    assert "remat" in str(traced)
    assert shapes_of(model, image_shape) == variables


# the sides at the end of each stage, on 64x64 pixels, of shallow networks
SIDES = [
    ("mobilenet_v1", {"stage_sizes": (1, 1, 1, 1, 1)}, [32, 16, 8, 4, 2]),
    ("mobilenet_v2", {"rows": [row._replace(num_blocks=1) for row in MOBILENET_V2]}, [32, 16, 8, 4, 4, 2, 2]),
    ("mobilenet_v3_small", {}, [16, 8, 4, 2]),
    ("shufflenet_v2_x0_5", {"stage_sizes": (1, 1, 1)}, [8, 4, 2]),
    ("efficientnet_b0", {"depth": 0.25}, [32, 16, 8, 4, 4, 2, 2]),
    ("efficientnet_lite0", {"depth": 0.25}, [32, 16, 8, 4, 4, 2, 2]),
    ("regnet_x_800mf", {"stages": ((16, 1), (32, 1), (48, 1), (64, 1))}, [16, 8, 4, 2]),
    ("convnext_tiny", {"stage_sizes": (1, 1, 1, 1)}, [16, 8, 4, 2]),
    ("vit_ti_16", {"num_layers": 4}, [4, 4, 4, 4]),
]


@pytest.mark.parametrize(("name", "keywords", "sides"), SIDES)
@pytest.mark.usefixtures("quick_to_trace")
def test_stages_halve_the_sides_as_the_paper_says_and_two_halvings_less_on_small_images(
    name: str, keywords: dict[str, Any], sides: list[int]
) -> None:
    for stem, size in (("imagenet", 64), ("small", 16)):
        model = build(name, stem=stem, **keywords)
        variables = shapes_of(model, (size, size, 3))
        pyramid = jax.eval_shape(partial(feature_pyramid, model), variables, jnp.zeros((1, size, size, 3)))
        stages = [features for stage, features in sorted(pyramid.items()) if stage.startswith("stage")]
        expected_sides = [min(side, size) for side in sides]
        assert [features.shape[1:3] for features in stages] == [(side, side) for side in expected_sides]
        assert pyramid["pooled"].ndim == 2


def test_regnets_stages_are_those_of_the_papers_appendix() -> None:
    assert stages_of(25, 88, 26.31, 2.25, 48) == [(96, 2), (192, 6), (432, 15), (1008, 2)]  # X-3.2GF
    assert stages_of(16, 48, 27.89, 2.09, 8) == [(48, 1), (104, 3), (208, 6), (440, 6)]  # Y-400MF


@pytest.mark.parametrize(
    ("name", "image_shape", "changes", "same_as"),
    [
        ("resnet20", CIFAR, {"depth": 2 / 3}, lambda: MODELS["resnet20"](num_classes=10, num_blocks=2)),
        ("shufflenet_v2_x0_5", CIFAR, {"depth": 0.25}, lambda: _short_shufflenet((48, 96, 192, 1024))),
        ("shufflenet_v2_x0_5", CIFAR, {"depth": 0.25, "width": 0.5}, lambda: _short_shufflenet((24, 48, 96, 512))),
        ("vit_ti_16", CIFAR, {"depth": 1 / 6, "width": 2.0}, lambda: _short_vit()),
        ("regnet_y_400mf", CIFAR, {"depth": 0.01, "width": 0.5}, lambda: _narrow_regnet()),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quick_to_trace")
def test_width_and_depth_are_multiples_of_the_papers(
    name: str, image_shape: tuple[int, ...], changes: dict[str, float], same_as: Any
) -> None:
    config = ModelConfig(name=name, stem="small" if name != "resnet20" else None, **cast(Any, changes))
    model = make_model(config, num_classes=10, image_size=32)
    assert shapes_of(model, image_shape) == shapes_of(same_as(), image_shape)


def _short_shufflenet(features: tuple[int, ...]) -> nn.Module:
    return MODELS["shufflenet_v2_x0_5"](num_classes=10, stem="small", stage_sizes=(1, 2, 1), features=features)


def _short_vit() -> nn.Module:
    return MODELS["vit_s_16"](num_classes=10, num_layers=2, stem="small")


def _narrow_regnet() -> nn.Module:
    stages = ((24, 1), (56, 1), (104, 1), (224, 1))  # half of 48, 104, 208 and 440, in groups of 8
    return MODELS["regnet_y_400mf"](num_classes=10, stem="small", stages=stages)


def test_widths_are_multiples_and_never_a_tenth_less() -> None:
    assert [to_multiple(channels) for channels in (3, 12, 11.9, 16, 35.2, 4.8, 20.4)] == [8, 16, 16, 16, 32, 8, 24]
    assert to_multiple(1000, 48) == 1008


def test_channels_are_shuffled_between_the_halves() -> None:
    shuffled = channel_shuffle(jnp.arange(12.0).reshape(1, 2, 6))
    np.testing.assert_array_equal(shuffled[0, 0], [0, 3, 1, 4, 2, 5])


def test_a_convolution_of_patches_is_a_strided_one() -> None:
    conv, images = PatchConv(5, 4), random_images(2, 9, 8, 3)
    params = {"kernel": random_images(4, 4, 3, 5), "bias": jnp.arange(5.0)}
    strided = jax.lax.conv_general_dilated(
        images, params["kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    outputs = cast(jax.Array, conv.apply({"params": params}, images))
    np.testing.assert_allclose(outputs, strided + params["bias"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stem", "size", "message"),
    [
        ("convnext_tiny", "imagenet", 31, "convnext needs images of at least 32x32 pixels and got 31x31.*stem=small"),
        ("convnext_tiny", "small", 7, "at least 8x8 pixels and got 7x7"),
        ("vit_b_16", "imagenet", 100, "patches of 16x16 pixels, which do not cover 100x100.*image_size=96"),
        ("vit_b_32", "imagenet", 16, "at least 32x32 pixels and got 16x16"),
        ("vit_b_32", "small", 30, "patches of 8x8 pixels, which do not cover 30x30.*image_size=24"),
        ("mobilenet_v2", "smal", 32, "did you mean 'small'"),
        ("vit_b_16", "smal", 32, "did you mean 'small'"),
    ],
)
def test_images_that_do_not_suit_the_stem_are_the_users_error(name: str, stem: str, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        shapes_of(build(name, stem=stem), (size, size, 3))


def test_a_model_without_blocks_has_no_rematerialisation() -> None:
    with pytest.raises(UserError, match=r"model.remat=True: cnn has no such option; set model.remat=False"):
        make_model(ModelConfig(name="cnn", remat=True), num_classes=10, image_size=28)


def test_padded_shortcut_subsamples_and_appends_zeros() -> None:
    x = jnp.arange(18.0).reshape(1, 3, 3, 2)
    y = padded_shortcut(x, 4, 2, cast(Any, None))
    np.testing.assert_array_equal(y[0, ..., 0], [[0, 4], [12, 16]])
    np.testing.assert_array_equal(y[..., 2:], 0)


def normalise(
    inputs: jax.Array, *, running: tuple[float, float] = (0.0, 1.0), train: bool = True, **keywords: Any
) -> tuple[jax.Array, Any]:
    """Outputs and new statistics of a norm with scale 1.5, bias 0.25 and these running statistics."""
    channels = inputs.shape[-1:]
    variables = {
        "params": {"scale": jnp.full(channels, 1.5), "bias": jnp.full(channels, 0.25)},
        "batch_stats": {"mean": jnp.full(channels, running[0]), "var": jnp.full(channels, running[1])},
    }
    norm = BatchNorm(use_running_average=not train, **keywords)
    outputs, state = jax.jit(partial(norm.apply, mutable=["batch_stats"]))(variables, inputs)
    return outputs, state["batch_stats"]


def expected(inputs: Any, epsilon: float = 1e-5) -> np.ndarray:
    values = np.asarray(inputs, np.float64)
    axes = tuple(range(values.ndim - 1))
    return 1.5 * (values - values.mean(axes)) / np.sqrt(values.var(axes) + epsilon) + 0.25


def test_batch_norm_is_numpys() -> None:
    inputs = 3.0 + 2.0 * random_images(8, 4, 4, 5) * jnp.arange(1, 6)
    outputs, stats = normalise(inputs, running=(1.0, 2.0), momentum=0.8)
    values = np.asarray(inputs, np.float64)
    np.testing.assert_allclose(outputs, expected(inputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], 0.8 * 1.0 + 0.2 * values.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.8 * 2.0 + 0.2 * values.var((0, 1, 2)), rtol=1e-5)  # biased


def test_batch_norm_evaluates_by_running_statistics_and_leaves_them() -> None:
    inputs = random_images(2, 3, 3, 4)
    outputs, stats = normalise(inputs, running=(1.0, 4.0), train=False, epsilon=0.0, axis_name="absent")
    np.testing.assert_allclose(outputs, 1.5 * (inputs - 1.0) / 2.0 + 0.25, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stats["mean"], 1.0)
    np.testing.assert_array_equal(stats["var"], 4.0)


@pytest.mark.parametrize("batch", [8, 512])
def test_batch_norm_is_right_far_from_zero(batch: int) -> None:
    inputs = np.float32(1000.0) + np.float32(1e-3) * np.random.default_rng(0).standard_normal(
        (batch, 8, 8, 3), np.float32
    )
    assert inputs.dtype == np.float32
    outputs, stats = normalise(jnp.asarray(inputs), momentum=0.0, epsilon=1e-12)
    np.testing.assert_allclose(stats["var"], np.asarray(inputs, np.float64).var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(outputs, expected(inputs, epsilon=1e-12), atol=1e-3)


def test_batch_norm_of_a_constant_is_its_bias() -> None:
    outputs, stats = normalise(jnp.full((64, 5, 5, 2), 1e8 / 3), momentum=0.0)
    np.testing.assert_allclose(outputs, 0.25)
    np.testing.assert_array_equal(stats["var"], 0.0)


def test_batch_norm_in_bfloat16_counts_in_float32() -> None:
    inputs = (5.0 + random_images(256, 4, 4, 2)).astype(jnp.bfloat16)
    outputs, stats = normalise(inputs, momentum=0.0, dtype=jnp.bfloat16)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(stats["mean"], np.asarray(inputs, np.float64).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(outputs, expected(inputs), rtol=2**-8, atol=2**-8)


def far_apart_shards() -> jax.Array:
    """Four devices' batches, [device, batch, height, width, channel], of different mean and spread."""
    device = jnp.arange(4.0).reshape(4, 1, 1, 1, 1)
    return (1 + device) * random_images(4, 8, 3, 3, 5) + 3 * device


def test_synchronised_batch_norm_is_one_large_batch() -> None:
    shards = far_apart_shards()
    whole = shards.reshape(32, 3, 3, 5)
    outputs, stats = jax.vmap(partial(normalise, axis_name="device"), axis_name="device")(shards)
    whole_outputs, whole_stats = normalise(whole)
    np.testing.assert_allclose(outputs.reshape(whole.shape), whole_outputs, rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        for device in range(4):
            np.testing.assert_allclose(stats[name][device], whole_stats[name], rtol=1e-5)


def test_synchronised_batch_norm_has_the_gradient_of_one_large_batch() -> None:
    shards = far_apart_shards()
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(shards.shape, np.float32))

    def sharded_loss(shards: jax.Array) -> jax.Array:
        outputs, _ = jax.vmap(partial(normalise, axis_name="device"), axis_name="device")(shards)
        return jnp.sum(weights * outputs)

    def plain_loss(shards: jax.Array) -> jax.Array:  # the textbook formula, through which all of it is differentiated
        mean, var = shards.mean((0, 1, 2, 3)), shards.var((0, 1, 2, 3))
        return jnp.sum(weights * 1.5 * (shards - mean) / jnp.sqrt(var + 1e-5))

    np.testing.assert_allclose(jax.grad(sharded_loss)(shards), jax.grad(plain_loss)(shards), rtol=1e-4, atol=1e-5)


def test_batch_norm_per_device_normalises_alone_but_keeps_one_state() -> None:
    shards = far_apart_shards()
    per_device = partial(normalise, axis_name="device", synchronise=False, momentum=0.0)
    outputs, stats = jax.vmap(per_device, axis_name="device")(shards)
    values = np.asarray(shards, np.float64)
    for device in range(4):
        np.testing.assert_allclose(outputs[device], expected(values[device]), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stats["mean"][device], values.mean((1, 2, 3)).mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats["var"][device], values.var((1, 2, 3)).mean(0), rtol=1e-5)


def test_batch_norm_starts_plain_and_outside_the_mapped_axis() -> None:
    norm = BatchNorm(use_running_average=False, axis_name="device")
    variables = norm.init(jax.random.key(0), 5 + random_images(4, 3, 3, 2))
    assert set(variables["params"]) == {"scale", "bias"}
    np.testing.assert_array_equal(variables["params"]["scale"], 1)
    np.testing.assert_array_equal(variables["params"]["bias"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


def test_a_model_with_synchronised_norms_sees_one_large_batch() -> None:
    plain = build("resnet20", num_blocks=1)
    synchronised = build("resnet20", num_blocks=1, norm=partial(BatchNorm, axis_name="device"))
    variables = random_variables(plain, (8, 8, 3))
    shards = random_images(2, 2, 8, 8, 3)
    train = partial(synchronised.apply, variables, train=True, mutable=["batch_stats"])
    logits, _ = jax.jit(jax.vmap(train, axis_name="device"))(shards)
    train = partial(plain.apply, variables, train=True, mutable=["batch_stats"])
    whole, _ = jax.jit(train)(shards.reshape(4, 8, 8, 3))
    np.testing.assert_allclose(logits.reshape(4, 10), whole, rtol=1e-3, atol=1e-3)
