"""Checks of texts: how far the vocabulary, the length and the word vectors reach, by config.json.

Every threshold stands above the check that uses it, with its reason; all are our own choice.
"""

from collections.abc import Callable, Iterator

from jaxcnn.results.diagnosis.finding import Finding
from jaxcnn.run.facts import Facts

UNKNOWN = 0.1  # of validation's words: one in ten; English texts by a vocabulary of ten thousand have half of that


def _vocabulary(facts: Facts) -> Iterator[Finding]:
    """Words of validation that the vocabulary has not."""
    known = facts.data.get("text", {}).get("known", {})
    split = "validation" if "validation" in known else "test"
    unknown = 1 - known.get(split, 1)
    if unknown <= UNKNOWN:
        return
    size, limit = len(facts.data["vocabulary"]["entries"]), facts.option("text.vocabulary_size")
    remedies = []
    if limit is not None and size + 3 >= limit:
        remedies.append(f"--config.text.vocabulary_size={2 * limit}")
    if (facts.option("text.minimum_count") or 1) > 1:
        remedies.append("--config.text.minimum_count=1")
    if facts.option("text.level") == "word":
        remedies.append("--config.text.level=character")
    yield Finding(
        "vocabulary coverage",
        "warning",
        f"{unknown:.1%} of {split}'s tokens are not among the {size:,} of the vocabulary, which train has, and "
        f"{1 - known.get('train', 1):.1%} of train's",
        tuple(remedies),
    )


CUT = 0.05  # of a split's texts: what ends early may say at its end what it is


def _cut(facts: Facts) -> Iterator[Finding]:
    """Texts that are longer than what is read of them."""
    cut, counts = facts.data.get("text", {}).get("cut", {}), facts.data["num_examples"]
    share = max((count / max(1, counts.get(split, 1)) for split, count in cut.items()), default=0)
    if share > CUT:
        length = facts.option("text.max_length")
        yield Finding(
            "texts are cut",
            "note",
            f"{share:.1%} of the texts of a split are longer than {length:,} tokens, and their ends are not read",
            (f"--config.text.max_length={2 * length}",),
        )


FOUND = 0.5  # of the vocabulary: below, most of what is learned from begins as drawn


def _vectors(facts: Facts) -> Iterator[Finding]:
    """Words of the vocabulary that the word vectors have not."""
    found = facts.data.get("vectors", {}).get("found", 1)
    if found < FOUND:
        yield Finding(
            "word vectors",
            "warning",
            f"{facts.option('text.embeddings')} has vectors for {found:.1%} of the vocabulary; the others were drawn",
            ("--config.text.embeddings=FILE of the same language", "--config.text.minimum_count=2"),
        )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (_vocabulary, _cut, _vectors)
