"""The digits that come with scikit-learn: 1,797 images of 8 x 8."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from jaxcnn.data.order import HOLDOUT_STREAM
from jaxcnn.data.records import ImagesInMemory, Split, StoredSet
from jaxcnn.errors import UserError
from jaxcnn.files import read_bytes
from jaxcnn.fingerprints import fingerprint_of


def open_digits() -> StoredSet:
    """The set, a fixed stratified fifth of it as test."""
    levels, labels = _digits_table()  # levels of grey 0..16
    images = np.round(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    records = ImagesInMemory("digits", images, labels)
    in_test = _stratified_fifth(labels)
    return StoredSet(
        class_names=tuple(str(digit) for digit in range(10)),
        image_shape=(8, 8, 1),
        splits={"train": Split(records, np.flatnonzero(~in_test)), "test": Split(records, np.flatnonzero(in_test))},
        fingerprint=fingerprint_of("digits", hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()),
    )


def _digits_table() -> tuple[np.ndarray, np.ndarray]:
    """Levels 0..16 [1797, 64] and labels [1797]."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: sklearn.datasets takes a second to import
    if package is None or not package.submodule_search_locations:
        raise UserError("data.name='digits' comes with scikit-learn: pip install scikit-learn")
    table = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if table.exists():
        lines = gzip.decompress(read_bytes(table, limit=1 << 20)).decode().splitlines()
        values = np.loadtxt(lines, delimiter=",", dtype=np.int64)
        return values[:, :-1], values[:, -1]
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.data.astype(np.int64), digits.target.astype(np.int64)


def _stratified_fifth(labels: np.ndarray) -> np.ndarray:
    """True for a fixed fifth (rounded up) of the examples, with every class in proportion. bool [N]"""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts / 5
    shares = np.floor(exact).astype(int)
    missing = -(-len(labels) // 5) - shares.sum()
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1  # largest remainders first
    generator = np.random.default_rng([HOLDOUT_STREAM, 0])
    chosen = np.zeros(len(labels), bool)
    for label, share in zip(classes, shares, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:share]] = True
    return chosen
