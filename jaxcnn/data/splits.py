"""Splits: the records of train, validation and test, by name and slice, held out, or by folds.

A function of the config and the labels alone. A run keeps what came out (record_numbers), so that no later version of
this, or of a library, changes the splits of a run that exists.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxcnn.config import DataConfig, parse_fold
from jaxcnn.data.order import HOLDOUT_STREAM, LIMIT_STREAM, DrawnGroups
from jaxcnn.data.records import JoinedRecords, Records, Relabelled, Split, classes_of, label_shape
from jaxcnn.errors import UserError, nearest
from jaxcnn.fingerprints import check_same_data
from jaxcnn.terminal import short_line

Progress = Callable[[str, int, int], None]  # what, done, total
Part = tuple[Records, np.ndarray]  # records, and which of them

TEST_FRACTION = 0.1  # held out of train where a set has neither test nor validation


def assign_splits(data: DataConfig, stored: dict[str, Split], progress: Progress | None = None) -> dict[str, Split]:
    """The source's splits under the run's three names; see open_source. Raises UserError."""
    train = named_split(data, "train_split", stored)
    named_splits = {name: stored[name] for name in ("validation", "test") if name in stored}
    if data.test_split is not None:
        test: Split | None = named_split(data, "test_split", stored)
    elif "test" in named_splits and num_shared(named_splits["test"], train):
        raise UserError(
            f"data.train_split={data.train_split!r} would measure on what was learned: it shares examples with "
            "'test'; name another split, or a data.test_split"
        )
    else:
        test = named_splits.get("test", named_splits.get("validation"))
        test = None if test is None or num_shared(test, train) else test
    if data.validation_split is not None:
        validation: Split | None = named_split(data, "validation_split", stored)
    else:
        validation = None if data.fold is not None else named_splits.get("validation")
        if validation is not None and (num_shared(validation, train) or (test and num_shared(validation, test))):
            validation = None
    for field, spec, split in (
        ("test_split", data.test_split, test),
        ("validation_split", data.validation_split, validation),
    ):
        if spec is not None and split is not None and (shared := num_shared(split, train)):
            raise UserError(
                f"data.{field}={spec!r} shares {shared:,} examples with data.train_split={data.train_split!r}, which "
                "is learned from; name parts that share none"
            )

    holds_out = validation is None and data.fold is None and data.validation_fraction > 0
    num_validation = max(1, round(data.validation_fraction * len(train))) if holds_out else 0
    num_test = max(1, round(TEST_FRACTION * len(train))) if test is None else 0
    if num_validation + num_test >= len(train):
        raise UserError(f"{data.name} {data.train_split} has {len(train)} examples, too few to hold some out")
    if num_validation or num_test or data.fold is not None:
        classes = classes_of(labels_of(train, progress)) if data.stratify else np.zeros(len(train), int)
        order = holdout_order(classes, data.split_seed)
        taken = lambda positions: Split(train.records, train.indices[np.sort(positions)])
        if test is None:
            test = taken(order[:num_test])
        if data.fold is not None:
            rest, in_fold = _fold(np.sort(order[num_test:]), classes, data)
            validation = taken(in_fold)
        else:
            rest = order[num_test + num_validation :]
            validation = taken(order[num_test : num_test + num_validation]) if holds_out else validation
        train = taken(rest)
    assert test is not None
    if data.examples_per_class is not None:
        train = _limited(train, data.examples_per_class, data.split_seed, progress)
    return {"train": train, **({} if validation is None else {"validation": validation}), "test": test}


def labels_of(split: Split, progress: Progress | None = None) -> np.ndarray:
    """Labels of a split's examples, in its order: int32 [N], -1 where one cannot be read, or soft float32 [N, K]."""
    what = f"reading the labels of {split.records.name}, once"
    tell = None if progress is None else lambda done, total: progress(what, done, total)
    return split.records.labels(tell)[split.indices]


def groups_of(split: Split, progress: Progress | None = None) -> DrawnGroups:
    """A split's examples by class: what balanced sampling draws from."""
    return DrawnGroups.of(classes_of(labels_of(split, progress)))


# ---- by name


@dataclass(frozen=True)
class _Size:
    num_examples: int


def named_split(data: DataConfig, field: str, stored: dict[str, Split]) -> Split:
    """Split that data.FIELD names, in TFDS's syntax: `train`, `train[:80%]`, `train+extra[100:]`. Raises UserError."""
    spec = getattr(data, field)
    if spec in stored:
        return _checked(stored[spec], f"data.{field}={spec!r}")
    for term in spec.split("+"):
        name = term.partition("[")[0].strip()
        if name not in stored:
            raise UserError(f"data.{field}={spec!r}: {data.name} has no split {name!r}; {nearest(name, stored)}")

    import tensorflow_datasets as tfds  # takes half a second

    try:
        sizes = {name: _Size(len(split)) for name, split in stored.items()}
        slices = tfds.core.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except Exception as error:
        raise UserError(
            f"data.{field}={spec!r} is no slice of {data.name} ({short_line(error)}); slices are written as "
            "'train[:80%]', 'train[100:-100]' or 'train+extra[50%:]'"
        ) from None
    parts = []
    for each in slices:
        part = stored[each.splitname]
        chosen = _in_slices_order(part, data.split_seed)[each.from_ : each.to]
        parts.append((part.records, np.sort(chosen)))
    return _checked(join(parts), f"data.{field}={spec!r}")


def _in_slices_order(split: Split, seed: int) -> np.ndarray:
    """Split in the order that slices cut: the set's own, or one that has each class in proportion everywhere.

    Where records lie class by class, as files do, train[:80%] would leave classes out. A class of one example is first.
    """
    if not getattr(split.records, "class_by_class", False):
        return split.indices
    order = holdout_order(classes_of(labels_of(split)), seed)[::-1]
    return split.indices[order]


def _checked(split: Split, what: str) -> Split:
    twice = len(split) - np.count_nonzero(_is_among(split.indices, split.records))
    if twice:
        raise UserError(f"{what} names {twice:,} examples twice; name parts that share none")
    if not len(split):
        raise UserError(f"{what} has no examples; name a part that has some")
    return split


def join(parts: Sequence[Part]) -> Split:
    """Parts of one or several sets of records as one split, in that order."""
    distinct = list({id(records): records for records, _ in parts}.values())
    if len(distinct) == 1:
        return Split(distinct[0], np.concatenate([numbers for _, numbers in parts]))
    starts = np.cumsum([0, *map(len, distinct)])
    place = {id(records): start for records, start in zip(distinct, starts, strict=False)}
    return Split(
        JoinedRecords(tuple(distinct)), np.concatenate([numbers + place[id(records)] for records, numbers in parts])
    )


def parts_of(split: Split) -> list[Part]:
    """The inverse of join."""
    if isinstance(split.records, Relabelled):
        return parts_of(Split(split.records.whole, split.indices))
    if not isinstance(split.records, JoinedRecords):
        return [(split.records, split.indices)]
    part, numbers = split.records.place(split.indices)
    edges = np.flatnonzero(np.diff(part)) + 1
    pieces = zip(np.split(part, edges), np.split(numbers, edges), strict=True)
    return [(split.records.parts[which[0]], piece) for which, piece in pieces if len(which)]


def num_shared(one: Split, other: Split) -> int:
    """Number of records that two splits have in common."""
    return sum(
        int(np.count_nonzero(_is_among(numbers, records) & _is_among(others, records)))
        for records, numbers in parts_of(one)
        for other_records, others in parts_of(other)
        if records is other_records
    )


def _is_among(numbers: np.ndarray, records: Records) -> np.ndarray:
    """Which of all records are among those numbers, bool [n]: for a million, numpy's sets take a second."""
    among = np.zeros(len(records), bool)
    among[numbers] = True
    return among


# ---- some classes, some examples


def class_numbers(data: DataConfig, class_names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the classes that data.classes names, in its order; a name counts before a number. Raises UserError."""
    numbers = []
    for each in data.classes:
        text = str(each)
        if text in class_names:
            numbers.append(list(class_names).index(text))
        elif text.isdecimal() and int(text) < len(class_names):
            numbers.append(int(text))
        else:
            raise UserError(f"data.classes: {data.name} has no class {text!r}; {nearest(text, class_names)}")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"data.classes={data.classes} names a class twice")
    if len(numbers) == 1:
        raise UserError(f"data.classes={data.classes} is only one class: there is nothing to tell apart")
    return tuple(numbers)


def only_classes(
    stored: dict[str, Split], numbers: Sequence[int], set_name: str, progress: Progress | None = None
) -> dict[str, Split]:
    """The splits without the examples of other classes; those whose label cannot be read stay, to be told of.

    A split with none of the classes counts as absent.
    """
    kept = {}
    for name, split in stored.items():
        if label_shape(split.records):
            raise UserError(f"data.classes: the labels of {set_name} are soft, none is one class; set it to '()'")
        labels = labels_of(split, progress)
        chosen = np.isin(labels, numbers)
        if chosen.any():
            kept[name] = Split(split.records, split.indices[chosen | (labels < 0)])
    if not kept:
        raise UserError(f"data.classes: {set_name} has no examples of these classes")
    return kept


def _limited(train: Split, count: int, seed: int, progress: Progress | None) -> Split:
    """The same number of each class, in train's order, without those that cannot be read; fewer are among more."""
    classes = classes_of(labels_of(train, progress))
    order = np.random.default_rng([LIMIT_STREAM, seed]).permutation(len(train))
    taken = []
    for number in np.unique(classes[classes >= 0]):
        of_class = order[classes[order] == number]
        if len(of_class) < count:
            raise UserError(
                f"data.examples_per_class={count:,}: train has only {len(of_class):,} of class {number}; ask for fewer"
            )
        taken.append(of_class[:count])
    return Split(train.records, train.indices[np.sort(np.concatenate(taken))])


# ---- held out


def holdout_order(classes: np.ndarray, seed: int) -> np.ndarray:
    """A shuffle of the positions of classes [N] whose every beginning has each class in proportion.

    The k-th example of a class of n, in random order, stands at (k + 1/2) / n of the way: a beginning then has as many
    of each class as Webster's method gives seats (Balinski & Young 1982), and a shorter one lies within a longer. The
    only example of a class stands last. scikit-learn's StratifiedShuffleSplit, which refuses classes of one example and
    parts smaller than the number of classes, has the same proportions; its import takes longer than a short run's.
    """
    shuffled = np.random.default_rng([HOLDOUT_STREAM, seed]).permutation(len(classes))
    _, which, counts = np.unique(classes[shuffled], return_inverse=True, return_counts=True)
    rank = np.empty(len(classes))
    rank[np.argsort(which, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
    size = counts[which]
    place = np.where(size == 1, 1, (rank + 0.5) / size)
    return shuffled[np.argsort(place, kind="stable")]


def _fold(positions: np.ndarray, classes: np.ndarray, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Positions outside and in the fold that data.fold names, by scikit-learn's StratifiedKFold."""
    from sklearn.model_selection import StratifiedKFold  # takes a second

    assert data.fold is not None
    fold, count = parse_fold(data.fold)
    folds = StratifiedKFold(count, shuffle=True, random_state=data.split_seed)
    try:
        with warnings.catch_warnings(action="ignore"):  # a class with fewer examples than folds is not in all of them
            outside, inside = list(folds.split(positions, classes[positions]))[fold - 1]
    except ValueError as error:
        raise UserError(f"data.fold={data.fold}: {data.name} has too few examples ({short_line(error)})") from None
    return positions[outside], positions[inside]


# ---- kept


def record_numbers(splits: dict[str, Split], stored: dict[str, Split], fingerprint: str) -> dict[str, np.ndarray]:
    """Splits as a run keeps them: `SPLIT/PLACE/STORED SPLIT` -> record numbers, int64 differences; and `fingerprint`.

    Differences of ascending numbers are small and compress well. Of stored splits that share their records, the first
    stands for all.
    """
    names: dict[int, str] = {}
    for name, split in stored.items():
        for records, _ in parts_of(split):
            names.setdefault(id(records), name)
    kept = {
        f"{split_name}/{place}/{names[id(records)]}": np.diff(numbers.astype(np.int64), prepend=0)
        for split_name, split in splits.items()
        for place, (records, numbers) in enumerate(parts_of(split))
    }
    return {"fingerprint": np.array(fingerprint), **kept}


def restore_splits(kept: dict[str, np.ndarray], stored: dict[str, Split], fingerprint: str) -> dict[str, Split]:
    """The inverse of record_numbers. Raises UserError where these are other data."""
    check_same_data(str(kept["fingerprint"]), fingerprint)
    parts: dict[str, list[Part]] = {}
    for key, differences in kept.items():
        if key != "fingerprint":
            split_name, _, name = key.split("/", 2)
            numbers, records = np.cumsum(differences), stored[name].records if name in stored else ()
            if not len(numbers) or not 0 <= numbers.min() <= numbers.max() < len(records):
                raise UserError(
                    f"splits.npz of the run names records of {name!r} that the data have not; it is damaged"
                )
            parts.setdefault(split_name, []).append((stored[name].records, numbers))
    if not {"train", "test"} <= parts.keys():
        raise UserError("splits.npz of the run has no train or no test; it is damaged")
    return {name: join(pieces) for name, pieces in parts.items()}
