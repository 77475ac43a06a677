"""Recurrent layers, attention and vocabularies: PyTorch's numbers, padding that changes nothing, carries that go on."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data.vocabulary import Vocabulary
from jaxcnn.layers import recurrent
from jaxcnn.layers.attention import Attention, Past
from jaxcnn.layers.recurrent import CELLS, Recurrent, Rows

GOLDENS = Path(__file__).parent / "goldens" / "torch"


def of_torch(golden, prefix=""):
    """A layer's arrays as ours are named, from PyTorch's."""
    params = {}
    for number in (0, 1):
        for suffix, ours in (("", ""), ("_reverse", "_backward")):
            params[f"layer{number + 1}{ours}"] = {
                name: {
                    "kernel": golden[f"{prefix}weight_{which}_l{number}{suffix}"].T,
                    "bias": golden[f"{prefix}bias_{which}_l{number}{suffix}"],
                }
                for name, which in (("input", "ih"), ("hidden", "hh"))
            }
    return params


def carried(golden, cell, prefix=""):
    arrays = [golden[f"{prefix}{name}"] for name in ("h", "c")[: CELLS[cell].size]]
    return tuple(tuple(each) if len(each) > 1 else each[0] for each in zip(*arrays, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_equals_pytorch(cell):
    golden = np.load(GOLDENS / f"{cell}.npz")
    model = Recurrent(cell, 4, layers=2, bidirectional=True)

    def loss(params, inputs, carry):
        outputs, last = model.apply({"params": params}, inputs, carry, jnp.array(golden["lengths"]))
        squares = sum(jnp.square(each).sum() for each in jax.tree.leaves(last))
        return (outputs * golden["weights"]).sum() + squares, (outputs, last)

    operands = of_torch(golden), golden["inputs"], carried(golden, cell)
    gradients, found = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*operands)
    expected = (of_torch(golden, "by_"), golden["by_inputs"], carried(golden, cell, "by_"))
    outputs = golden["outputs"], carried(golden, cell, "last_")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (gradients, found), (expected, outputs))


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_is_jaxs_own_of_the_same_loop(cell, monkeypatch):
    model = Recurrent(cell, 4, layers=2)
    inputs = jax.random.normal(jax.random.key(0), (2, 5, 3))
    params = model.init(jax.random.key(1), inputs)
    carry = jax.tree.map(lambda x: x + 0.5, model.zeros(2))
    loss = lambda *operands: jnp.square(model.apply(*operands, jnp.array([5, 3]))[0]).sum()
    ours = jax.grad(loss, argnums=(0, 1, 2))(params, inputs, carry)
    monkeypatch.setattr(recurrent, "_recur", recurrent._recur.fun)
    theirs = jax.grad(loss, argnums=(0, 1, 2))(params, inputs, carry)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("cell", CELLS)
def test_two_halves_are_the_whole_and_padding_changes_nothing(cell):
    model = Recurrent(cell, 4, layers=2, layer_norm=cell == "lstm")
    inputs = jax.random.normal(jax.random.key(0), (2, 6, 3))
    params = model.init(jax.random.key(1), inputs)
    whole, last = model.apply(params, inputs)
    first, carry = model.apply(params, inputs[:, :4])
    second, halves = model.apply(params, inputs[:, 4:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), halves, last)
    junk = jnp.concatenate([inputs, 1e3 * jnp.ones((2, 3, 3))], axis=1)
    padded, same = model.apply(params, junk, None, jnp.array([6, 6]))
    np.testing.assert_allclose(padded[:, :6], whole, atol=1e-6)
    assert not padded[:, 6:].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), same, last)


@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_a_table_are_what_is_looked_up(cell):
    model, tokens = Recurrent(cell, 4, bidirectional=True), jnp.array([[0, 3, 3, 1], [4, 4, 0, 2]])
    table = jax.random.normal(jax.random.key(0), (6, 3))
    params = model.init(jax.random.key(1), table[tokens])
    looked_up = lambda params, table: jnp.square(model.apply(params, table[tokens])[0]).sum()
    by_rows = lambda params, table: jnp.square(model.apply(params, Rows(table, tokens))[0]).sum()
    expected, found = (jax.value_and_grad(each, argnums=(0, 1))(params, table) for each in (looked_up, by_rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_attention_sees_the_past_alone_no_padding_and_goes_on_from_it():
    model = Attention(2, jnp.float32, causal=True)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = model.init(jax.random.key(1), x)
    whole, _ = model.apply(params, x)
    later, _ = model.apply(params, x.at[:, 3:].set(7.0))
    np.testing.assert_array_equal(later[:, :3], whole[:, :3])
    assert not np.allclose(later[:, 3:], whole[:, 3:])
    padded, _ = Attention(2, jnp.float32).apply(params, x.at[:, 3:].set(7.0), jnp.array([3, 3]))
    short, _ = Attention(2, jnp.float32).apply(params, x[:, :3])
    np.testing.assert_allclose(padded[:, :3], short, atol=1e-6)
    past: Any = Past(*jnp.zeros((2, 2, 6, 2, 4)))
    for at, stop in ((0, 2), (2, 3), (3, 5)):
        piece, past = model.apply(params, x[:, at:stop], None, (past, at))
        np.testing.assert_allclose(piece, whole[:, at:stop], atol=1e-6)


TEXT = "The cat's (old) hat,\nthe cat: 3 hats!"


@pytest.mark.parametrize(("level", "decoded"), [("character", TEXT), ("byte", TEXT), ("word", TEXT.lower())])
def test_a_vocabulary_gives_the_text_back(level, decoded):
    vocabulary = Vocabulary.of([TEXT], level)
    numbers = vocabulary.encode(TEXT)
    assert numbers.dtype == np.int32
    assert numbers.min() > 2
    assert numbers.max() < len(vocabulary)
    assert vocabulary.decode(numbers) == decoded
    assert vocabulary.decode([*numbers[:4], 0, 2, *numbers]) == vocabulary.decode(numbers[:4])
    assert Vocabulary.from_plain(vocabulary.to_plain()) == vocabulary


def test_a_vocabulary_is_of_what_is_frequent():
    vocabulary = Vocabulary.of(["b a a c c d", "a"], "word", size=6, minimum_count=1)
    assert vocabulary.entries == ("a", "c", "b")
    assert vocabulary.encode("d a zebra").tolist() == [1, 3, 1]
    assert Vocabulary.of(["b a a"], "character", minimum_count=2).entries == (" ", "a")
    assert Vocabulary.of([""], "character").encode("ab").tolist() == [1, 1]
    assert Vocabulary.of([], "byte").decode(Vocabulary.of([], "byte").encode("é\udcff\0")) == "é�\0"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"level": "rune", "entries": []}, "rune"),
        ({"level": "word", "entries": ["a", "a"]}, "twice"),
        ({"level": "word", "entries": [1]}, "not text"),
        ({"level": "character", "entries": ["ab"]}, "single"),
        ([], "fields"),
    ],
)
def test_a_file_that_holds_no_vocabulary_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        Vocabulary.from_plain(data)
