"""What a finished run of one class an example says, from its logits: answers of predict, columns of predictions.csv."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def class_answers(names: tuple[str, ...], logits: np.ndarray, top_k: int) -> list[dict[str, Any]]:
    """Of each example `class` and `confidence`; then `class_2`, `confidence_2`, …"""
    rows = []
    for shares in _softmax(logits):
        row: dict[str, Any] = {}
        for place, number in enumerate(np.argsort(-shares, kind="stable")[:top_k], start=1):
            suffix = "" if place == 1 else f"_{place}"
            row |= {f"class{suffix}": names[number], f"confidence{suffix}": round(float(shares[number]), 6)}
        rows.append(row)
    return rows


def class_columns(names: tuple[str, ...], logits: np.ndarray, classes: np.ndarray) -> dict[str, list[Any]]:
    """What each example was, what was said of it, and the share of each class."""
    shares, predicted = _softmax(logits), logits.argmax(axis=1)
    return {
        "label": [names[number] for number in classes],
        "prediction": [names[number] for number in predicted],
        "confidence": [f"{row[number]:.7g}" for row, number in zip(shares, predicted, strict=True)],
        "correct": (predicted == classes).astype(int).tolist(),
        **{f"p_{name}": [f"{share:.7g}" for share in shares[:, number]] for number, name in enumerate(names)},
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
