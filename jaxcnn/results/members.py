"""Members of an evaluation, the checkpoints that are measured together, and the data that they are measured on.

What is opened is checked: an ensemble's members have the same classes, data and split; other data have their classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from jaxcnn.augment import VIEWS
from jaxcnn.config import Config, DataConfig
from jaxcnn.data import Source, Split, num_shared, open_source
from jaxcnn.data.records import ChosenClasses, label_shape
from jaxcnn.data.sources import open_stored
from jaxcnn.data.splits import join
from jaxcnn.errors import UserError, nearest
from jaxcnn.fingerprints import same_data
from jaxcnn.results.trained import TrainedModel, load
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.training.feed import Progress
from jaxcnn.transfer import imagenet

WHOLE_SET = "all"  # the split of other data that has every example
_NAMES_SHOWN = 5  # in an error


@dataclass(frozen=True)
class LoadedMember:
    """A checkpoint with its network, ready to be measured."""

    folder: epath.Path
    saved: dict[str, Any]  # the run's config.json
    model: TrainedModel
    views: str  # that its logits are averaged over, see augment.average_views

    @property
    def step(self) -> int:
        """The step of its checkpoint."""
        return step_of(self.model)


@dataclass(frozen=True)
class Measured:
    """The split that members are measured on."""

    source: Source
    split: str
    is_own: bool  # the run's data, not others
    config: Config  # the first run's, for the data as they are here


@dataclass(frozen=True)
class NotCalibrated:
    """The reason that no temperature is fitted."""

    reason: str


def step_of(model: TrainedModel) -> int:
    """The step of a network's checkpoint."""
    return int(model.source.rpartition(" ")[2])


# ---- members


def load_members(
    workdirs: Sequence[str | epath.Path], steps: Sequence[str], *, tta: str | None
) -> tuple[list[LoadedMember], list[str]]:
    """(the checkpoints `steps` of each folder, each once; notes on those that were given more often).

    Raises:
      UserError: one is not there, they have other classes than the first, or there are no such views.
      RunError: one is damaged.
    """
    if tta is not None and tta not in VIEWS:
        raise UserError(f"--tta={tta} is not known; {nearest(tta, VIEWS)}")
    members: dict[str, LoadedMember] = {}
    notes = []
    for workdir in workdirs:
        folder = workdir_lib.resolve(str(workdir))
        folder = folder if "://" in str(folder) else folder.resolve()
        for step in steps:
            model = load(str(folder), step)
            if model.source in members:
                notes.append(f"step {step_of(model):,} of {folder} was given more than once; it is counted once")
                continue
            saved = workdir_lib.read_config(folder)
            members[model.source] = LoadedMember(folder, saved, model, tta or model.config.eval_tta)
    _check_same_classes(list(members.values()))
    return list(members.values()), notes


def _check_same_classes(members: Sequence[LoadedMember]) -> None:
    first = members[0]
    for other in members[1:]:
        for what, expected, actual in (
            ("classes", first.model.class_names, other.model.class_names),
            ("image shapes", first.model.image_shape, other.model.image_shape),
        ):
            if expected != actual:
                raise UserError(
                    f"{first.folder} and {other.folder} have other {what} ({_first_names(expected)} and "
                    f"{_first_names(actual)}), so that they make no ensemble; evaluate each alone"
                )


def _first_names(values: tuple[Any, ...]) -> str:
    count = f", … {len(values):,} in all" if len(values) > _NAMES_SHOWN else ""
    return ", ".join(map(str, values[:_NAMES_SHOWN])) + count


def _check_same_data(first: LoadedMember, other: LoadedMember, split: str) -> None:
    ours, theirs = first.saved["data"], other.saved["data"]
    if not same_data(ours["fingerprint"], theirs["fingerprint"]):
        raise UserError(
            f"{first.folder} was trained on other data ({ours['name']}) than {other.folder} ({theirs['name']}): their "
            f"{split} is not the same; pass --data for one set that both are measured on"
        )
    if not _have_same_split(first, other, split):
        raise UserError(
            f"{first.folder} and {other.folder} have other splits of {ours['name']}: their {split} is not the same, so "
            "that one may have learned what the other is measured on; pass --data, or evaluate each alone"
        )


def _have_same_split(first: LoadedMember, other: LoadedMember, split: str) -> bool:
    """Whether two runs on the same data have the same examples in it, in the same order."""
    if first.saved["data"].get("splits") == other.saved["data"].get("splits"):
        return True
    kept = [workdir_lib.read_splits(member.folder) for member in (first, other)]
    if None in kept:
        return False
    ours, theirs = ({name: x for name, x in (each or {}).items() if name.startswith(f"{split}/")} for each in kept)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


# ---- data


def open_measured(
    members: Sequence[LoadedMember], *, split: str | None, data: str | None, data_dir: str | None, progress: Progress
) -> Measured:
    """The split that is asked for, of the members' own data or of others, as for measure.evaluate_run. UserError."""
    first = members[0]
    config = copy.deepcopy(first.model.config)
    config.data.exclude = None  # what is left of it stands in the run's splits
    config.data.dir = data_dir or config.data.dir
    if data is not None:
        split = split or WHOLE_SET
        return Measured(_open_other(data, split, data_dir, first.model, progress), split, False, config)
    split = split or "test"
    for other in members[1:]:
        _check_same_data(first, other, split)
    source = _open_own(first, config, progress)
    if split not in source.splits:
        raise UserError(f"--split={split}: the run has none (data.validation_fraction=0)")
    return Measured(source, split, True, config)


def _open_own(member: LoadedMember, config: Config, progress: Progress) -> Source:
    """The run's data, checked to be those."""
    try:
        source = open_source(config.data, progress=progress, kept=workdir_lib.read_splits(member.folder))
    except UserError as error:
        where = "" if "--data_dir" in str(error) else "; if the data lie elsewhere now, pass their folder as --data_dir"
        raise UserError(f"{error}{where}") from None
    facts = {"fingerprint": source.fingerprint, "splits": source.splits_digest}
    workdir_lib.check_data(member.folder, member.saved["data"], facts)
    return source


def _open_other(data: str, split: str, data_dir: str | None, model: TrainedModel, progress: Progress) -> Source:
    """A set that the run has not seen, as its model wants it: size, channels, and the classes in its order."""
    of_run = model.config.data
    stored = open_stored(
        DataConfig(
            name=data,
            dir=data_dir or (of_run.dir if data.startswith("tfds:") else None),
            channels=model.image_shape[2] if model.image_shape[2] in (1, 3) else None,
        ),
        progress=progress,
        damaged=of_run.damaged == "skip",
        partial=True,
    )
    if split == WHOLE_SET:
        examples = join([(each.records, each.indices) for each in stored.splits.values()])
    elif split in stored.splits:
        examples = stored.splits[split]
    else:
        raise UserError(
            f"--split={split}: {data} has no such split; {nearest(split, stored.splits)}; without --split, all of it"
        )
    return Source(
        name=data,
        class_names=model.class_names,
        image_shape=model.image_shape,
        splits={split: _with_classes_of(model, examples, stored.class_names, data)},
        fingerprint=stored.fingerprint,
    )


def _with_classes_of(model: TrainedModel, examples: Split, class_names: tuple[str, ...], data: str) -> Split:
    """Examples with the model's numbers of classes, matched by name. Raises UserError: it does not know one."""
    if not set(class_names) <= set(model.class_names):  # folders of ImageNet, of a run that has its names
        class_names = imagenet.translated(class_names)
    unknown = [name for name in class_names if name not in model.class_names]
    if unknown:
        raise UserError(
            f"--data={data} has class {unknown[0]!r} ({len(unknown)} in all), which the run does not know; "
            f"{nearest(unknown[0], model.class_names)}"
        )
    if class_names == model.class_names:
        return examples
    if label_shape(examples.records):
        raise UserError(f"--data={data} has soft labels, of other classes than the run's")
    place = {name: number for number, name in enumerate(class_names)}
    absent = len(place)  # a number that no record has
    numbers = tuple(place.get(name, absent + number) for number, name in enumerate(model.class_names))
    return Split(ChosenClasses(examples.records, numbers), examples.indices)


def validation_of(members: Sequence[LoadedMember], measured: Measured, progress: Progress) -> Source | NotCalibrated:
    """The runs' data, on whose validation a temperature may be fitted; or why on none."""
    first, source, split = members[0], measured.source, measured.split
    if measured.is_own and split == "validation":
        return NotCalibrated("a temperature is fitted on validation, which is what is reported")
    if not measured.is_own:
        if same_data(first.saved["data"]["fingerprint"], source.fingerprint):
            return NotCalibrated("the data are the run's own, on whose validation a temperature is fitted")
        try:
            source = _open_own(first, measured.config, progress)
        except UserError as error:
            reason = f"the run's own data, on whose validation a temperature is fitted, are not here: {error}"
            return NotCalibrated(reason)
    if "validation" not in source.splits:
        return NotCalibrated("the run has no validation split to fit a temperature on")
    if measured.is_own and (shared := num_shared(source.splits["validation"], source.splits[split])):
        return NotCalibrated(f"validation, on which a temperature is fitted, shares {shared:,} examples with {split}")
    for other in members[1:]:
        ours, theirs = (member.saved["data"]["fingerprint"] for member in (first, other))
        if not same_data(ours, theirs) or not _have_same_split(first, other, "validation"):
            return NotCalibrated("the runs have no validation split in common to fit a temperature on")
    return source
