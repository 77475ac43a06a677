"""Sections about a run of texts: scores, confusion, and the words by which it was surest, right or wrong."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.vocabulary import Vocabulary
from jaxcnn.report.evaluated import Evaluated
from jaxcnn.report.files import RunFiles, shown_name
from jaxcnn.report.from_predictions import confusion
from jaxcnn.report.page import Section, escape, paragraph, shaded, table, words
from jaxcnn.run.log import number_in_words
from jaxcnn.tasks.text.source import vocabulary_of
from jaxcnn.training.feed import Progress

MISTAKES, RIGHT = 6, 2  # texts that are shown
MOST_TOKENS = 200  # of a text, that are left out one by one


def sections(run: RunFiles, values: Any, progress: Progress) -> dict[str, Callable[[], Section]]:
    """What makes each section, by its title."""
    made = _Sections(run, values, progress)
    return {"Scores": made.scores, "Confusion": made.confusion, "Words": made.words}


def _words_of(value: float | None) -> str:
    """A cell: a count as it is."""
    return "—" if value is None else f"{value:,}" if isinstance(value, int) else number_in_words(value)


class _Sections(Evaluated):
    """A run of texts."""

    resamples = 1000

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.finished.saved["data"].get("vocabulary"))

    def scores(self) -> Section:
        """The scores, those of each class, and how far the vocabulary reaches."""
        evaluation, names = self.evaluation, self.finished.finished.class_names
        body = paragraph(escape(self.of_what)) + self.scores_table()
        if evaluation.classes is not None:
            shown = [name for name in ("support", "recall", "precision", "f1") if name in evaluation.classes.of_each]
            columns = [evaluation.classes.of_each[name] for name in shown]
            rows = [[name, *map(_words_of, row)] for name, *row in zip(names, *columns, strict=True)]
            body += table(["class", *shown], rows, caption="Of each class")
        known = self.finished.saved["data"].get("text", {}).get("known", {})
        rows = [[split, f"{share:.2%}"] for split, share in known.items()]
        caption = f"The share of tokens that the vocabulary of {len(self.vocabulary):,} has"
        return Section("Scores", body + table(["split", "known"], rows, caption=caption))

    def confusion(self) -> Section:
        """The matrix, and the most frequent mistakes."""
        classes = self.evaluation.classes
        assert classes is not None
        names = self.finished.finished.class_names
        return confusion(classes.confusion_matrix, names, things="texts", of_what=self.of_what)

    def words(self) -> Section:
        """The surest mistakes and right answers, each token in the shade of what it spoke for."""
        columns = self.evaluation.columns
        sure, right = np.array(columns["confidence"], float), np.array(columns["correct"], bool)
        order = np.argsort(-sure, kind="stable")
        chosen = [*order[~right[order]][:MISTAKES], *order[right[order]][:RIGHT]]
        body = paragraph(
            f"The surest of {int((~right).sum()):,} mistakes, then of what is right. A word's shade is by how much the "
            "logarithm of the class's probability would fall if the word were not known (Li et al. 2016, "
            "arXiv:1612.08220): blue spoke for what was said, orange against it, the full shade the strongest of the "
            f"text. {escape(self.of_what)}"
        )
        split = self.evaluation.source.splits[self.evaluation.split]
        for number in chosen:
            example = split.records[int(split.indices[self.evaluation.places[number]])]
            name, said, true = (
                words(each)
                for each in (
                    shown_name(self.evaluation.identifiers[number]),
                    columns["prediction"][number],
                    columns["label"][number],
                )
            )
            body += paragraph(f"{name}: said {said} {sure[number]:.1%}, is <b>{true}</b>")
            body += shaded(self._weighed(example["tokens"]))
        return Section("Words", body)

    def _weighed(self, tokens: np.ndarray) -> list[tuple[str, float]]:
        """The words of a text int [length], and what each weighed, at most 1."""
        whole = int((tokens != Vocabulary.padding).sum())
        count = min(whole, MOST_TOKENS)
        without = np.tile(tokens, (1 + min(len(tokens), MOST_TOKENS), 1))
        without[1 + np.arange(count), np.arange(count)] = Vocabulary.unknown
        weights = np.asarray(self._falls(without))[:count]
        weights = weights / max(float(np.abs(weights).max(initial=0)), 1e-9)
        space = "" if self.vocabulary.level == "character" else " "
        pieces = [
            (f"{self.vocabulary.name(int(token))}{space}", float(weight))
            for token, weight in zip(tokens[:count], weights, strict=True)
        ]
        return [*pieces, ("…", 0.0)] if count < whole else pieces

    @cached_property
    def _falls(self) -> Callable[[np.ndarray], jax.Array]:
        """Texts int [1 + n, length], the first whole -> by how much its class's log-probability falls in each other."""

        def falls(variables: Any, tokens: jax.Array) -> jax.Array:
            logs = jax.nn.log_softmax(self.finished.outputs(variables, {"tokens": tokens}))
            of_class = logs[:, jnp.argmax(logs[0])]
            return of_class[0] - of_class[1:]

        call = jax.jit(falls)
        return lambda tokens: call(self.finished.variables, tokens)
