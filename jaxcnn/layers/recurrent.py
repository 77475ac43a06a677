"""Recurrent layers: the simple cell (Elman 1990), LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000), GRU (Cho et
al. 2014).

Equations and the order of gates are PyTorch's, so that weights carry over. The products with the inputs of all steps
are one, before the loop; in it is one product a step, with the gates side by side; the gradient of its kernel is one
product after the loop. Arrays within the loop are [features, batch], in which CPUs are fastest.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

Arrays = tuple[jax.Array, ...]  # what a cell carries, [features, batch] each; its output first


class Cell(NamedTuple):
    """One step of a recurrence."""

    gates: int  # blocks of `features` rows in its kernels
    size: int  # arrays that it carries
    # (from the inputs, from the output before, each [gates * features, batch]; carried; norm of its memory) -> carried
    step: Callable[[jax.Array, jax.Array, Arrays, Callable[[jax.Array], jax.Array]], Arrays]


def _rnn(x: jax.Array, recurrent: jax.Array, carry: Arrays, norm: Callable) -> Arrays:
    return (jnp.tanh(x + recurrent),)


def _lstm(x: jax.Array, recurrent: jax.Array, carry: Arrays, norm: Callable) -> Arrays:
    i, f, g, o = jnp.split(x + recurrent, 4)
    memory = _sigmoid(f) * carry[1] + _sigmoid(i) * jnp.tanh(g)
    return _sigmoid(o) * jnp.tanh(norm(memory)), memory


def _gru(x: jax.Array, recurrent: jax.Array, carry: Arrays, norm: Callable) -> Arrays:
    (x_r, x_z, x_n), (r, z, n) = jnp.split(x, 3), jnp.split(recurrent, 3)
    z = _sigmoid(x_z + z)
    return ((1 - z) * jnp.tanh(x_n + _sigmoid(x_r + r) * n) + z * carry[0],)


def _sigmoid(x: jax.Array) -> jax.Array:
    return 0.5 * jnp.tanh(0.5 * x) + 0.5  # faster than XLA's own on CPUs


CELLS = {"rnn": Cell(1, 1, _rnn), "lstm": Cell(4, 2, _lstm), "gru": Cell(3, 1, _gru)}


class Recurrent(nn.Module):
    """Layers of a cell over a sequence, each reading the outputs of the one below."""

    cell: str = "lstm"  # a key of CELLS
    features: int = 256  # of the outputs, in each direction
    layers: int = 1
    dropout_rate: float = 0.0  # between layers
    layer_norm: bool = (
        False  # of both products, and of the LSTM's memory: Ba et al. 2016, arXiv:1607.06450, section 3.1
    )
    bidirectional: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: jax.Array, carry: Any = None, lengths: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """Outputs of the last layer [batch, time, features * directions], and what the last step carries.

        Args:
          inputs: [batch, time, anything].
          carry: what the step before the first carried, as returned; None: zeros. A tuple over layers and, innermost,
            directions, of arrays [batch, features], or pairs of them (output, memory) where the cell is an LSTM.
          lengths: int [batch], steps of each sequence, the others being padding: there outputs are 0, and what is
            carried stays as it was. None: all.
          train: whether dropout drops.
        """
        batch, time, _ = inputs.shape
        directions = ("", "_backward") if self.bidirectional else ("",)
        carry = self.zeros(batch) if carry is None else carry
        mask = None if lengths is None else jnp.arange(time)[:, None, None] < lengths
        x = jnp.moveaxis(inputs.astype(self.dtype), 0, 2)
        carried: list[Any] = []
        for number in range(1, self.layers + 1):
            outputs = []
            for suffix in directions:
                layer = _Layer(self.cell, self.features, self.layer_norm, self.dtype, name=f"layer{number}{suffix}")
                y, last = layer(x, carry[len(carried)], mask, reverse=suffix != "")
                outputs.append(y)
                carried.append(last)
            x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
            if number < self.layers and self.dropout_rate:
                x = jnp.moveaxis(x, 2, 0)
                x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{number}")(x)
                x = jnp.moveaxis(x, 0, 2)
        return jnp.moveaxis(x, 2, 0), tuple(carried)

    @nn.nowrap
    def zeros(self, batch: int) -> Any:
        """What the first step of a sequence is given, as `carry` has it."""
        array = jnp.zeros((batch, self.features), self.dtype)
        one = (array, array) if CELLS[self.cell].size == 2 else array
        return (one,) * (self.layers * (2 if self.bidirectional else 1))


class _Layer(nn.Module):
    """One layer in one direction. Its `input` and `hidden` are PyTorch's weight_ih and weight_hh, transposed."""

    cell: str
    features: int
    layer_norm: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, carry: Any, mask: jax.Array | None, *, reverse: bool) -> tuple[jax.Array, Any]:
        """From x [time, inputs, batch] to outputs [time, features, batch]; the mask is bool [time, 1, batch]."""
        cell = CELLS[self.cell]
        width = cell.gates * self.features
        kernel, bias = _Kernel(x.shape[1], width, self.features, self.dtype, name="input")()
        hidden, hidden_bias = _Kernel(self.features, width, self.features, self.dtype, name="hidden")()
        x = jnp.einsum("gi,tib->tgb", kernel.T, x)
        norms: dict[str, Arrays] = {}
        if self.layer_norm:
            x = _normalised(x, *_Norm(width, self.dtype, name="input_norm")())
            norms["hidden"] = _Norm(width, self.dtype, name="hidden_norm")()
            if cell.size == 2:
                norms["memory"] = _Norm(self.features, self.dtype, name="memory_norm")()
        carry = jax.tree.leaves(jax.tree.map(lambda array: array.astype(self.dtype).T, carry))
        constants = (hidden.T, hidden_bias[:, None], norms)
        outputs, last = _recur(self.cell, reverse, x + bias[:, None], mask, constants, tuple(carry))
        outputs = outputs if mask is None else jnp.where(mask, outputs, 0)
        last = tuple(array.T for array in last)
        return outputs, last if cell.size == 2 else last[0]


class _Kernel(nn.Module):
    """A kernel and its bias, drawn as PyTorch draws them."""

    inputs: int
    outputs: int
    features: int  # of the cell
    dtype: DTypeLike

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """(kernel [inputs, outputs], bias [outputs])."""
        bound = self.features**-0.5

        def uniform(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", uniform, (self.inputs, self.outputs), jnp.float32)
        bias = self.param("bias", uniform, (self.outputs,), jnp.float32)
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class _Norm(nn.Module):
    """What a layer norm over columns multiplies by and adds, [features, 1] each."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """(scale, bias)."""
        scale = self.param("scale", nn.initializers.ones_init(), (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return scale.astype(self.dtype)[:, None], bias.astype(self.dtype)[:, None]


def _normalised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer norm over the last axis but one."""
    centred = x - x.mean(-2, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-2, keepdims=True) + 1e-5) * scale + bias


# ---- the loop, with a gradient of its own


def _step(cell: str, norms: dict[str, Arrays], x: jax.Array, recurrent: jax.Array, mask: Any, carry: Arrays) -> Arrays:
    """One step, after its product; a step that is padding leaves what is carried as it was."""
    if "hidden" in norms:
        recurrent = _normalised(recurrent, *norms["hidden"])
    norm = (lambda memory: _normalised(memory, *norms["memory"])) if "memory" in norms else (lambda memory: memory)
    new = CELLS[cell].step(x, recurrent, carry, norm)
    return new if mask is None else tuple(jnp.where(mask, *each) for each in zip(new, carry, strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recur(
    cell: str, reverse: bool, x: jax.Array, mask: jax.Array | None, constants: Any, carry: Arrays
) -> tuple[jax.Array, Arrays]:
    """Outputs [time, features, batch] and what is carried last, of the inputs' part x [time, gates * features, batch].

    The constants are the hidden kernel [gates * features, features], its bias [gates * features, 1], and the norms.
    """
    kernel, bias, norms = constants

    def body(carry: Arrays, entry: Any) -> tuple[Arrays, jax.Array]:
        x, mask = entry
        carry = _step(cell, norms, x, kernel @ carry[0] + bias, mask, carry)
        return carry, carry[0]

    carry, outputs = jax.lax.scan(body, carry, (x, mask), reverse=reverse)
    return outputs, carry


def _forward(cell: str, reverse: bool, x: Any, mask: Any, constants: Any, carry: Arrays) -> tuple[Any, Any]:
    kernel, bias, norms = constants

    def body(carry: Arrays, entry: Any) -> tuple[Arrays, Any]:
        x, mask = entry
        recurrent = kernel @ carry[0] + bias
        new = _step(cell, norms, x, recurrent, mask, carry)
        return new, (new[0], recurrent, carry)

    last, (outputs, recurrent, carries) = jax.lax.scan(body, carry, (x, mask), reverse=reverse)
    return (outputs, last), (x, mask, constants, recurrent, carries)


def _backward(cell: str, reverse: bool, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    x, mask, (kernel, _, norms), recurrent, carries = saved
    by_outputs, by_last = cotangents
    back = jax.lax.optimization_barrier(kernel.T)  # turned once, not in each step

    def body(state: Any, entry: Any) -> tuple[Any, Any]:
        (by_output, *by_rest), by_norms = state
        x, mask, recurrent, carry, also = entry
        _, pull = jax.vjp(lambda norms, x, r, carry: _step(cell, norms, x, r, mask, carry), norms, x, recurrent, carry)
        more, by_x, by_recurrent, (by_output, *by_rest) = pull((by_output + also, *by_rest))
        by_norms = jax.tree.map(jnp.add, by_norms, more)
        by_carry = (by_output + back @ by_recurrent, *by_rest)
        return (by_carry, by_norms), (by_x, by_recurrent)

    begin = by_last, jax.tree.map(jnp.zeros_like, norms)
    entries = x, mask, recurrent, carries, by_outputs
    (by_carry, by_norms), (by_x, by_recurrent) = jax.lax.scan(body, begin, entries, reverse=not reverse)
    by_kernel = jnp.einsum("tgb,thb->gh", by_recurrent, carries[0])
    by_bias = by_recurrent.sum((0, 2))[:, None]
    return by_x, None, (by_kernel, by_bias, by_norms), by_carry


_recur.defvjp(_forward, _backward)
