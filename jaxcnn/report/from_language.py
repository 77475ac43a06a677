"""Sections about a language model: what it is worth, what it writes, and which tokens of a text it did not expect."""

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jaxcnn.data.vocabulary import Vocabulary
from jaxcnn.report.evaluated import Evaluated
from jaxcnn.report.files import RunFiles
from jaxcnn.report.page import Section, code, escape, paragraph, shaded, table
from jaxcnn.run.log import read_rows
from jaxcnn.tasks.language import vocabulary_of
from jaxcnn.tasks.language.generation import Sampling, sample
from jaxcnn.training.feed import Progress

TEMPERATURES = 0.5, 0.8, 1.0
WRITTEN = 400  # tokens of each text
EPOCHS_SHOWN = 8  # of the texts that were kept while it learned
PASSAGES = 3  # of the split, that are shown
MOST_BITS = 10.0  # of a token, that has the full shade: one of a thousand that were as likely


def sections(run: RunFiles, values: Any, progress: Progress) -> dict[str, Callable[[], Section]]:
    """What makes each section, by its title."""
    made = _Sections(run, values, progress)
    return {"Scores": made.scores, "Writing": made.writing, "Reading": made.reading}


class _Sections(Evaluated):
    """A run of a language model."""

    resamples = 1000

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.finished.saved["data"])

    def scores(self) -> Section:
        """The scores, and how far the vocabulary reaches."""
        facts = self.finished.saved["data"]["language"]
        rows = [[split, f"{facts['tokens'][split]:,}", f"{share:.2%}"] for split, share in facts["unknown"].items()]
        caption = f"Tokens, and the share that is not in the vocabulary of {len(self.vocabulary):,}"
        return Section(
            "Scores",
            paragraph(escape(self.of_what)) + self.scores_table()
            + table(["split", "tokens", "unknown"], rows, caption=caption),
        )  # fmt: skip

    def writing(self) -> Section:
        """A text for each temperature, from the beginning of a text."""
        module = self.finished.module
        body = paragraph("What it writes from the beginning of a text, with the seed 0.")
        for temperature in TEMPERATURES:
            pieces = sample(
                partial(_logits, module, self.finished.variables),
                np.array([Vocabulary.end], np.int32),
                begun=module.begin,
                key=jax.random.key(0),
                sampling=Sampling(temperature),
                num=1,
                num_tokens=WRITTEN,
                window=getattr(module, "length", None),
            )
            text = self.vocabulary.decode(np.concatenate([piece[0] for piece in pieces]))
            body += paragraph(f"Temperature {temperature:g}:", css="note soft") + code(text)
        return Section("Writing", body + self._while_it_learned())

    def _while_it_learned(self) -> str:
        """What it wrote after each evaluation of the training, some of them, the first and the last among those."""
        rows = read_rows(self.run.workdir / "samples.jsonl")
        if not rows:
            return ""
        body = paragraph("What it wrote while it learned, with the run's seed.")
        for place in np.unique(np.linspace(0, len(rows) - 1, min(EPOCHS_SHOWN, len(rows))).astype(int)):
            body += paragraph(f"Epoch {rows[place]['epoch']:g}:", css="note soft") + code(rows[place]["text"])
        return body

    def reading(self) -> Section:
        """Passages of the split, each token in the shade of the bits that it took."""
        split = self.evaluation.source.splits[self.evaluation.split]
        chosen = np.linspace(0, len(split) - 1, min(PASSAGES, len(split))).astype(int)
        windows = np.stack([example["tokens"] for example in split.records.read(split.indices[chosen])])
        outputs = jax.device_get(jax.jit(self.finished.outputs)(self.finished.variables, {"tokens": windows}))
        body = paragraph(
            "Passages as the network read them: the stronger a token's shade, the less it was expected; the full shade "
            f"is {MOST_BITS:g} bits or more. {escape(self.of_what)}"
        )
        for tokens, nats in zip(windows[:, 1:], outputs["nats"], strict=True):
            there = tokens != Vocabulary.padding
            body += shaded([
                (self._shown(int(token)), -float(each) / math.log(2) / MOST_BITS)
                for token, each in zip(tokens[there], nats[there], strict=True)
            ])  # fmt: skip
        return Section("Reading", body)

    def _shown(self, token: int) -> str:
        name = self.vocabulary.name(token)
        return f"{name} " if self.vocabulary.level == "word" else name


def _logits(module: Any, variables: Any, tokens: Any, carry: Any) -> Any:
    return module.apply(variables, tokens, train=False, carry=carry)
