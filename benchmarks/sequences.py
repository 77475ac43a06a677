"""Recurrent layers beside PyTorch's, in one run: taskset -c 1 python -m benchmarks.sequences

Forward and backward pass of one layer, batch 32, 128 steps, 256 units: CPU milliseconds, medians of 5. With
`--golden FOLDER` it writes what tests/test_recurrent.py compares with instead: outputs and gradients of small layers.
Needs PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

CELLS = ("lstm", "gru", "rnn")


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="write what the tests compare with into this folder")
    values = parser.parse_args()
    if values.golden:
        for cell in CELLS:
            np.savez(values.golden / f"{cell}.npz", **golden(cell))


if __name__ == "__main__":
    main()
