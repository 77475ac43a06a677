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
    """One step of a recurrence, after its products, and its gradient."""

    gates: int  # blocks of `features` rows in its kernels
    size: int  # arrays that it carries
    # (from the inputs, from the output before, each [gates * features, batch]; carried; norm of its memory)
    # -> (carried, what `backward` needs)
    forward: Callable[[jax.Array, jax.Array, Arrays, Callable[[jax.Array], jax.Array]], tuple[Arrays, Arrays]]
    # (that; what was carried to it; by what it carries on) -> by the inputs' part, by the output's part, by the carried
    backward: Callable[[Arrays, Arrays, Arrays], tuple[jax.Array, jax.Array, Arrays]]


def _rnn(x: jax.Array, recurrent: jax.Array, carry: Arrays, norm: Callable) -> tuple[Arrays, Arrays]:
    y = jnp.tanh(x + recurrent)
    return (y,), (y,)


def _rnn_backward(saved: Arrays, carry: Arrays, by: Arrays) -> tuple[jax.Array, jax.Array, Arrays]:
    by_x = by[0] * (1 - saved[0] ** 2)
    return by_x, by_x, (jnp.zeros_like(by[0]),)


def _lstm(x: jax.Array, recurrent: jax.Array, carry: Arrays, norm: Callable) -> tuple[Arrays, Arrays]:
    i, f, g, o = jnp.split(x + recurrent, 4)
    i, f, g, o = _sigmoid(i), _sigmoid(f), jnp.tanh(g), _sigmoid(o)
    memory = f * carry[1] + i * g
    shown = jnp.tanh(norm(memory))
    return (o * shown, memory), (i, f, g, o, shown)


def _lstm_backward(saved: Arrays, carry: Arrays, by: Arrays) -> tuple[jax.Array, jax.Array, Arrays]:
    (i, f, g, o, shown), (by_output, by_memory) = saved, by
    by_memory = by_memory + by_output * o * (1 - shown**2)
    by_x = jnp.concatenate([
        by_memory * g * i * (1 - i),
        by_memory * carry[1] * f * (1 - f),
        by_memory * i * (1 - g**2),
        by_output * shown * o * (1 - o),
    ])  # fmt: skip
    return by_x, by_x, (jnp.zeros_like(by_output), by_memory * f)


def _gru(x: jax.Array, recurrent: jax.Array, carry: Arrays, norm: Callable) -> tuple[Arrays, Arrays]:
    (x_r, x_z, x_n), (r, z, m) = jnp.split(x, 3), jnp.split(recurrent, 3)
    r, z = _sigmoid(x_r + r), _sigmoid(x_z + z)
    n = jnp.tanh(x_n + r * m)
    return ((1 - z) * n + z * carry[0],), (r, z, n, m)


def _gru_backward(saved: Arrays, carry: Arrays, by: Arrays) -> tuple[jax.Array, jax.Array, Arrays]:
    (r, z, n, m), (by_output,) = saved, by
    by_n = by_output * (1 - z) * (1 - n**2)
    by_r, by_z = by_n * m * r * (1 - r), by_output * (carry[0] - n) * z * (1 - z)
    return jnp.concatenate([by_r, by_z, by_n]), jnp.concatenate([by_r, by_z, by_n * r]), (by_output * z,)


def _sigmoid(x: jax.Array) -> jax.Array:
    return 0.5 * jnp.tanh(0.5 * x) + 0.5  # faster than XLA's own on CPUs


CELLS = {
    "rnn": Cell(1, 1, _rnn, _rnn_backward),
    "lstm": Cell(4, 2, _lstm, _lstm_backward),
    "gru": Cell(3, 1, _gru, _gru_backward),
}


class Rows(NamedTuple):
    """Inputs that are rows of a table: an embedding's, whose products with a kernel are then the table's own."""

    table: jax.Array  # [rows, anything]
    tokens: jax.Array  # int [batch, time]


MOST_ROWS = 1024  # of a table of which that pays


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
        self, inputs: jax.Array | Rows, carry: Any = None, lengths: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """Outputs of the last layer [batch, time, features * directions], and what the last step carries.

        Args:
          inputs: [batch, time, anything], or rows of a table.
          carry: what the step before the first carried, as returned; None: zeros. A tuple over layers and, innermost,
            directions, of arrays [batch, features], or pairs of them (output, memory) where the cell is an LSTM.
          lengths: int [batch], steps of each sequence, the others being padding: there outputs are 0, and what is
            carried stays as it was. None: all.
          train: whether dropout drops.
        """
        x: Any = inputs
        batch, time = x.tokens.shape if isinstance(x, Rows) else x.shape[:2]
        directions = ("", "_backward") if self.bidirectional else ("",)
        carry = self.zeros(batch) if carry is None else carry
        mask = None if lengths is None else jnp.arange(time)[:, None, None] < lengths
        x = x if isinstance(x, Rows) else jnp.moveaxis(x.astype(self.dtype), 0, 2)
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
    def __call__(
        self, x: jax.Array | Rows, carry: Any, mask: jax.Array | None, *, reverse: bool
    ) -> tuple[jax.Array, Any]:
        """From x [time, inputs, batch], or rows, to outputs [time, features, batch]; mask: bool [time, 1, batch]."""
        cell = CELLS[self.cell]
        width = cell.gates * self.features
        inputs = x.table if isinstance(x, Rows) else x
        kernel, bias = _Kernel(inputs.shape[1], width, self.features, self.dtype, name="input")()
        hidden, hidden_bias = _Kernel(self.features, width, self.features, self.dtype, name="hidden")()
        if isinstance(x, Rows):
            x = jnp.moveaxis(_taken(x.table.astype(self.dtype) @ kernel, x.tokens.T), 2, 1)
        else:
            x = jnp.einsum("gi,tib->tgb", _turned(kernel), x)
        norms: dict[str, Arrays] = {}
        if self.layer_norm:
            x = _normalised(x, *_Norm(width, self.dtype, name="input_norm")())
            norms["hidden"] = _Norm(width, self.dtype, name="hidden_norm")()
            if cell.size == 2:
                norms["memory"] = _Norm(self.features, self.dtype, name="memory_norm")()
        carry = jax.tree.leaves(jax.tree.map(lambda array: array.astype(self.dtype).T, carry))
        x, constants = x + bias[:, None], (_turned(hidden), hidden_bias[:, None])
        if norms:
            (outputs, _, _), last = _loop(self.cell, reverse, x, mask, constants, tuple(carry), norms)
        else:
            outputs, last = _recur(self.cell, reverse, x, mask, constants, tuple(carry))
        outputs = outputs if mask is None else jnp.where(mask, outputs, 0)
        last = tuple(array.T for array in last)
        return outputs, last if cell.size == 2 else last[0]


def _turned(kernel: jax.Array) -> jax.Array:
    """Its transpose, [outputs, inputs], made once: folded into products, the gradient's too, it slows CPUs down."""
    return jax.lax.optimization_barrier(kernel.T)


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


@jax.custom_vjp
def _taken(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a small table, [..., columns]. Its gradient is a product, which is faster than adding row by row."""
    return table[tokens]


def _taken_backward(saved: tuple[int, jax.Array], by_rows: jax.Array) -> tuple[jax.Array, None]:
    size, tokens = saved
    which = jax.nn.one_hot(tokens.reshape(-1), size, dtype=by_rows.dtype)
    return which.T @ by_rows.reshape(-1, by_rows.shape[-1]), None


_taken.defvjp(lambda table, tokens: (table[tokens], (len(table), tokens)), _taken_backward)


# ---- the loop, and where nothing is normed a gradient of its own


def _loop(
    cell: str,
    reverse: bool,
    x: jax.Array,
    mask: jax.Array | None,
    constants: Any,
    carry: Arrays,
    norms: dict[str, Arrays],
) -> tuple[Any, Arrays]:
    """((outputs [time, features, batch], what was saved of each step, what was carried to it), what is carried last).

    x: the inputs' part [time, gates * features, batch]; constants: the hidden kernel [gates * features, features], and
    its bias [gates * features, 1]. A step that is padding leaves what is carried as it was.
    """
    kernel, bias = constants

    def body(carry: Arrays, entry: Any) -> tuple[Arrays, Any]:
        x, mask = entry
        recurrent = kernel @ carry[0] + bias
        if "hidden" in norms:
            recurrent = _normalised(recurrent, *norms["hidden"])
        norm = (lambda memory: _normalised(memory, *norms["memory"])) if "memory" in norms else (lambda memory: memory)
        new, saved = CELLS[cell].forward(x, recurrent, carry, norm)
        new = new if mask is None else tuple(jnp.where(mask, *each) for each in zip(new, carry, strict=True))
        return new, (new[0], saved, carry)

    last, found = jax.lax.scan(body, carry, (x, mask), reverse=reverse)
    return found, last


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recur(
    cell: str, reverse: bool, x: jax.Array, mask: jax.Array | None, constants: Any, carry: Arrays
) -> tuple[jax.Array, Arrays]:
    """Outputs [time, features, batch] and what is carried last; arguments as of `_loop`."""
    (outputs, _, _), last = _loop(cell, reverse, x, mask, constants, carry, {})
    return outputs, last


def _forward(cell: str, reverse: bool, x: Any, mask: Any, constants: Any, carry: Arrays) -> tuple[Any, Any]:
    (outputs, saved, carries), last = _loop(cell, reverse, x, mask, constants, carry, {})
    return (outputs, last), (mask, constants[0], saved, carries)


def _backward(cell: str, reverse: bool, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    mask, kernel, saved, carries = kept
    by_outputs, by_last = cotangents
    back = _turned(kernel)

    def body(by_carry: Arrays, entry: Any) -> tuple[Arrays, Any]:
        mask, saved, carry, by_output = entry
        by = (by_carry[0] + by_output, *by_carry[1:])
        by_new = by if mask is None else tuple(jnp.where(mask, each, 0) for each in by)
        by_x, by_recurrent, by_before = CELLS[cell].backward(saved, carry, by_new)
        by_before = (by_before[0] + back @ by_recurrent, *by_before[1:])
        if mask is not None:
            by_before = tuple(jnp.where(mask, *each) for each in zip(by_before, by, strict=True))
        return by_before, (by_x,) if by_x is by_recurrent else (by_x, by_recurrent)

    entries = mask, saved, carries, by_outputs
    by_carry, found = jax.lax.scan(body, by_last, entries, reverse=not reverse)
    by_kernel = jnp.einsum("tgb,thb->gh", found[-1], carries[0])
    return found[0], None, (by_kernel, found[-1].sum((0, 2))[:, None]), by_carry


_recur.defvjp(_forward, _backward)
