"""Recurrent layers and the language model beside PyTorch's, in one run: taskset -c 1 python -m benchmarks.sequences

Forward and backward pass of one layer over random inputs, and the whole step of a language model (embedding, layer,
head, cross entropy, its gradient): batch 32, 128 steps, 256 units, a vocabulary of 100. CPU milliseconds of the
process, in which others who are at work take less part; medians of 5 rounds. Needs PyTorch. With `--golden FOLDER` it
writes what tests/test_recurrent.py compares with instead: outputs and gradients of small layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Others, Report, Table, has_torch, in_turn, make_parser, milliseconds, ratio, say, set_up

CELLS = ("lstm", "gru", "rnn")
BATCH, TIME, FEATURES, TOKENS = 32, 128, 256, 100
CALLS = 3  # a round


def cpu_seconds(call: Callable[[], Any]) -> Callable[[], float]:
    """A measurement of the CPU seconds that a call takes, which returns when it is done; warms up now."""
    call()

    def measure() -> float:
        start = time.process_time()
        for _ in range(CALLS):
            call()
        return (time.process_time() - start) / CALLS

    return measure


def our_layer(cell: str) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    from jaxcnn.layers.recurrent import Recurrent

    layer = Recurrent(cell, FEATURES)
    inputs = jax.random.normal(jax.random.key(0), (BATCH, TIME, FEATURES))
    params = jax.jit(layer.init)(jax.random.key(1), inputs)
    weights = jax.random.normal(jax.random.key(2), (BATCH, TIME, FEATURES))
    loss = lambda params, inputs: jnp.vdot(layer.apply(params, inputs)[0], weights)
    call = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(call(params, inputs))


def their_layer(cell: str) -> Callable[[], Any]:
    import torch

    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell](
        FEATURES, FEATURES, batch_first=True
    )
    inputs = torch.randn(BATCH, TIME, FEATURES, requires_grad=True)
    weights = torch.randn(BATCH, TIME, FEATURES)

    def call() -> None:
        layer.zero_grad()
        inputs.grad = None
        layer(inputs)[0].backward(weights)

    return call


def our_model(cell: str) -> Callable[[], Any]:
    import jax
    import optax

    from jaxcnn.models.language_recurrent import RecurrentLanguageModel

    model = RecurrentLanguageModel(num_classes=TOKENS, vocabulary=TOKENS, cell=cell, features=FEATURES)
    tokens = jax.random.randint(jax.random.key(0), (BATCH, TIME + 1), 0, TOKENS)
    params = jax.jit(partial(model.init, train=False))(jax.random.key(1), tokens[:, :-1])
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    loss = lambda params: cross_entropy(model.apply(params, tokens[:, :-1], train=True), tokens[:, 1:]).mean()
    call = jax.jit(jax.grad(loss))
    return lambda: jax.block_until_ready(call(params))


def their_model(cell: str) -> Callable[[], Any]:
    import torch

    embedding, head = torch.nn.Embedding(TOKENS, FEATURES), torch.nn.Linear(FEATURES, TOKENS)
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell](
        FEATURES, FEATURES, batch_first=True
    )
    tokens = torch.randint(0, TOKENS, (BATCH, TIME + 1))

    def call() -> None:
        for module in (embedding, head, layer):
            module.zero_grad()
        logits = head(layer(embedding(tokens[:, :-1]))[0])
        torch.nn.functional.cross_entropy(logits.reshape(-1, TOKENS), tokens[:, 1:].reshape(-1)).backward()

    return call


def golden(cell: str, *, batch: int = 3, time: int = 7, inputs: int = 5, features: int = 4) -> dict[str, np.ndarray]:
    """Weights, inputs, outputs and gradients of two layers in both directions, by PyTorch's names and layouts.

    The loss is the sum of outputs times `weights`, and of squares of what is carried last.
    """
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.manual_seed(0)
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell]
    peer = layer(inputs, features, 2, batch_first=True, bidirectional=True)
    arrays = {"inputs": torch.randn(batch, time, inputs), "weights": torch.randn(batch, time, 2 * features)}
    arrays |= {name: torch.randn(4, batch, features) for name in ("h", "c")[: 2 if cell == "lstm" else 1]}
    for array in arrays.values():
        array.requires_grad_()
    lengths = [time, 3, 1]
    begin = (arrays["h"], arrays["c"]) if cell == "lstm" else arrays["h"]
    packed, last = peer(pack_padded_sequence(arrays["inputs"], lengths, batch_first=True), begin)
    outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=time)
    lasts = last if cell == "lstm" else (last,)
    ((outputs * arrays["weights"]).sum() + sum(each.square().sum() for each in lasts)).backward()
    named = {**dict(peer.named_parameters()), **arrays}
    found = {name: array.detach().numpy() for name, array in named.items()}
    found |= {f"by_{name}": array.grad.numpy() for name, array in named.items() if name != "weights"}
    found |= {f"last_{name}": array.detach().numpy() for name, array in zip(("h", "c"), lasts, strict=False)}
    return {**found, "lengths": np.array(lengths), "outputs": outputs.detach().numpy()}


def main() -> None:
    """Prints a table, or writes the goldens."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--golden", type=Path, help="write what the tests compare with into this folder")
    options = parser.parse_args()
    if options.golden:
        for cell in CELLS:
            np.savez(options.golden / f"{cell}.npz", **golden(cell))  # type: ignore[arg-type]
        return
    set_up(options)
    report, others = Report(options.json, "sequences"), Others()
    table = Table(what=16, ours_ms=14, torch_ms=14, ratio=20)
    for what, ours, theirs in (("layer", our_layer, their_layer), ("model", our_model, their_model)):
        for cell in CELLS:
            sides = {"ours": cpu_seconds(ours(cell))}
            if has_torch():
                sides["torch"] = cpu_seconds(theirs(cell))
            found = in_turn(sides, options.repeats)
            against = ratio(found, "ours", "torch")
            table.row(f"{what} {cell}", *map(milliseconds, found.values()), str(against))
            report.add(what=what, cell=cell, seconds=found, ratio=against)
    report.finish()
    if not has_torch():
        say("PyTorch is not installed")
    others.warn()


if __name__ == "__main__":
    main()
