"""Pre-activation residual networks (He et al. 2016b, arXiv:1603.05027): norm and activation before each convolution.

For CIFAR 9n + 2 layers of bottlenecks (table 4), and 18 and 34 layers of basic blocks, as many implement it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, Layer, Layers, StochasticDepth, global_average, symmetric_conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.models.resnet import residual_stages


class PreActBasicBlock(nn.Module):
    """Norm, activation and 3x3 convolution, twice: figure 1b."""

    features: int
    stride: int
    changes: bool  # whether the shape does
    layers: Layers
    dropout_rate: float = 0.0  # between the convolutions: Zagoruyko and Komodakis 2016, section 2.4
    drop_rate: float = 0.0  # of the branch: stochastic depth

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        conv, norm, activation = self.layers
        y = activation(norm(name="norm1")(x))
        # Where the shape changes, the shortcut too starts from the activations.
        shortcut = conv(self.features, 1, self.stride, name="shortcut_conv")(y) if self.changes else x
        y = conv(self.features, 3, self.stride, name="conv1")(y)
        y = activation(norm(name="norm2")(y))
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        y = conv(self.features, 3, name="conv2")(y)
        return shortcut + StochasticDepth(self.drop_rate, name="drop")(y, train=train)


class PreActBottleneck(nn.Module):
    """Norm, activation and convolution, three times: 1x1, 3x3, and 1x1 to four times the features."""

    features: int
    stride: int
    changes: bool  # whether the shape does
    layers: Layers
    drop_rate: float = 0.0  # of the branch: stochastic depth

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, 4 * features], sides rounded up."""
        conv, norm, activation = self.layers
        y = activation(norm(name="norm1")(x))
        shortcut = conv(4 * self.features, 1, self.stride, name="shortcut_conv")(y) if self.changes else x
        y = conv(self.features, 1, name="conv1")(y)
        y = activation(norm(name="norm2")(y))
        y = conv(self.features, 3, self.stride, name="conv2")(y)
        y = activation(norm(name="norm3")(y))
        y = conv(4 * self.features, 1, name="conv3")(y)
        return shortcut + StochasticDepth(self.drop_rate, name="drop")(y, train=train)


class PreActResNet(nn.Module):
    """3x3 stem, stages, and a last norm and activation before the head; for small images."""

    num_classes: int
    stage_sizes: Sequence[int]
    block: Callable[..., nn.Module]
    stem_features: int = 16
    features: int = 16  # of the first stage
    width: float = 1.0  # times the channels of the stages
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    stochastic_depth: float = 0.0  # of the last block; linear from 0 at the first
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        conv = partial(symmetric_conv, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        x = conv(self.stem_features, 3, name="stem_conv")(images)
        x = residual_stages(
            self,
            x,
            train,
            stem_features=self.stem_features,
            stage_sizes=self.stage_sizes,
            features=[round(self.features * self.width) * 2**stage for stage in range(len(self.stage_sizes))],
            block=partial(self.block, layers=Layers(conv, norm, self.activation)),
        )
        x = self.activation(norm(name="final_norm")(x))
        x = global_average(x)
        x = tap(self, "pooled", x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


preact_resnet18 = partial(PreActResNet, stage_sizes=(2, 2, 2, 2), block=PreActBasicBlock, stem_features=64, features=64)
preact_resnet34 = partial(PreActResNet, stage_sizes=(3, 4, 6, 3), block=PreActBasicBlock, stem_features=64, features=64)
preact_resnet164 = partial(PreActResNet, stage_sizes=(18, 18, 18), block=PreActBottleneck)
