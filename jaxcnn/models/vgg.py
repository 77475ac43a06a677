"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556): 3x3 convolutions, then three dense layers (table 1).

With batch norm (`_bn`) the convolutions keep their biases, as in torchvision. The small stem is for 32x32 pixels: the
same stages, and the head on the average of the last map, as is usual on CIFAR: of VGG-16's 138 million parameters that
leaves 15. Convolutions start He-normal by fan-out, dense layers normal with 0.01, as in torchvision.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, Layer, check_stem, global_average, symmetric_conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import adaptive_avg_pool, max_pool


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each stage pooled by 2; dense1, dense2, head."""

    num_classes: int
    stage_sizes: Sequence[int]  # convolutions in each stage
    stem: str = "imagenet"
    width: float = 1.0  # times the paper's channels and dense units
    norm: Layer | None = None  # after each convolution; lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    dropout_rate: float = 0.5  # after each dense layer; with the small stem before the head
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        check_stem("vgg", self.stem, images, smallest=dict.fromkeys(("imagenet", "small"), 2 ** len(self.stage_sizes)))
        conv = partial(symmetric_conv, use_bias=True, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        x = images
        for stage, num_convs in enumerate(self.stage_sizes, start=1):
            features = round(min(512, 64 * 2 ** (stage - 1)) * self.width)
            for index in range(1, num_convs + 1):
                x = conv(features, 3, name=f"stage{stage}_conv{index}")(x)
                if self.norm is not None:
                    norm = self.norm(use_running_average=not train, dtype=self.dtype, name=f"stage{stage}_norm{index}")
                    x = norm(x)
                x = self.activation(x)
            x = tap(self, f"stage{stage}", x)
            x = max_pool(x, 2)

        dense_init = nn.initializers.normal(0.01)
        head = nn.Dense(self.num_classes, kernel_init=dense_init, dtype=jnp.float32, name="head")
        if self.stem == "small":
            x = global_average(x)
            x = tap(self, "pooled", x)
            return head(dropout(name="head_dropout")(x))
        dense = partial(nn.Dense, round(4096 * self.width), kernel_init=dense_init, dtype=self.dtype)
        x = adaptive_avg_pool(x, 7).reshape(x.shape[0], -1)
        x = dropout(name="dropout1")(self.activation(dense(name="dense1")(x)))
        x = self.activation(dense(name="dense2")(x))
        x = tap(self, "pooled", x)
        return head(dropout(name="dropout2")(x))


vgg11 = partial(VGG, stage_sizes=(1, 1, 2, 2, 2))  # configurations A, B, D and E
vgg13 = partial(VGG, stage_sizes=(2, 2, 2, 2, 2))
vgg16 = partial(VGG, stage_sizes=(2, 2, 3, 3, 3))
vgg19 = partial(VGG, stage_sizes=(2, 2, 4, 4, 4))
vgg11_bn = partial(vgg11, norm=BatchNorm)
vgg13_bn = partial(vgg13, norm=BatchNorm)
vgg16_bn = partial(vgg16, norm=BatchNorm)
vgg19_bn = partial(vgg19, norm=BatchNorm)
