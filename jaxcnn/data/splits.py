"""Which records make train, validation and test."""

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.order import HOLDOUT_STREAM
from jaxcnn.data.records import Split
from jaxcnn.errors import UserError, nearest

TEST_FRACTION = 0.1  # held out of train where a set has neither test nor validation


def assign_splits(data: DataConfig, stored: dict[str, Split]) -> dict[str, Split]:
    """The source's splits under the run's three names; see open_source."""
    for field, name in (("train_split", data.train_split), ("validation_split", data.validation_split)):
        if name is not None and name not in stored:
            raise UserError(f"data.{field}={name!r}: {data.name} has no such split; {nearest(name, stored)}")
    if data.validation_split == data.train_split:
        raise UserError(f"data.validation_split={data.validation_split!r} is also what is learned from; name another")
    if data.train_split == "test":
        raise UserError("data.train_split='test' would measure on what was learned; name another split")

    train = stored[data.train_split]
    own = {name: stored[name] for name in ("validation", "test") if name in stored and name != data.train_split}
    test = own.get("test", own.get("validation"))
    validation = own.get("validation") if "test" in own else None
    if data.validation_split is not None:
        validation = stored[data.validation_split]

    order = np.random.default_rng([HOLDOUT_STREAM, data.split_seed]).permutation(len(train))
    holds_out = validation is None and data.validation_fraction > 0
    num_validation = max(1, round(data.validation_fraction * len(train))) if holds_out else 0
    num_test = max(1, round(TEST_FRACTION * len(train))) if test is None else 0
    if num_validation + num_test >= len(train):
        raise UserError(f"{data.name} {data.train_split} has {len(train)} examples, too few to hold some out")

    def taken(start: int, stop: int) -> Split:
        return Split(train.records, train.indices[np.sort(order[start:stop])])

    if holds_out:
        validation = taken(0, num_validation)
    return {
        "train": taken(num_validation + num_test, len(train)) if num_validation + num_test else train,
        **({} if validation is None else {"validation": validation}),
        "test": taken(num_validation, num_validation + num_test) if test is None else test,
    }
