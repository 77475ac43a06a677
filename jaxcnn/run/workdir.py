"""Run directory: ownership, locking and content. Refuses to mix two runs in one folder."""

import io
import math
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from jaxcnn.config import Config, changed_fields, from_dict, to_dict, validate
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import finite, is_remote, locked, read_bytes, read_json, to_json, write_atomically
from jaxcnn.fingerprints import check_same_data
from jaxcnn.plain_data import Number, conforms
from jaxcnn.plain_data import check as check_schema
from jaxcnn.terminal import one_line

SCHEMES = ("gs", "s3", "az", "hf")  # of URLs: those of etils.epath
LARGEST_IMAGE = 1 << 28  # values: height times width times channels
LARGEST_SPLITS = 1 << 28  # bytes of splits.npz, and eight times that of what is in it
FAILED = "failed.json"  # of a study's run that failed: why
OWN_LINES = "run.log"  # of a study's run: what a terminal would have shown
LAUNCH = "launch"  # what a launch of several processes left: scripts, logs
_LOCK = ".lock"
_BESIDE = {_LOCK, FAILED, OWN_LINES, LAUNCH}  # what may lie there before the run does
_COUNT = Number(0, 2**53, integer=True)
_METRIC = (Number(), None)  # null: it is not finite
_RUN = {
    "experiment": str,
    "config": {},
    "data": {
        "name": str,
        "fingerprint": str,
        "splits?": (str, None),
        "excluded?": {"digest": (str, None)},
        "image_shape": ([Number(1, LARGEST_IMAGE, integer=True)], None),
        "class_names": [str],
        "num_examples": {"train": Number(1, 2**53, integer=True), str: _COUNT},
        "class_counts?": ({str: {str: _COUNT}}, None),
        "mean?": [Number()],
        "std?": [Number(1e-37)],
        "table?": {"target": str, "columns": [{"name": str, "values": ([str], None)}]},
        "target?": {"mean": Number(), "std": Number(1e-37)},
        "vocabulary?": {"level": str, "entries": [str]},
        "text?": {"length": _COUNT, "cut": {str: _COUNT}, "known": {str: Number(0, 1)}},
        "vectors?": {"size": _COUNT, "found": Number(0, 1)},
        "language?": {
            "vocabulary": {"level": str, "entries": [str]},
            "tokens": {str: _COUNT},
            "unknown": {str: Number(0, 1)},
        },
        "series?": {
            "time": str,
            "key": (str, None),
            "columns": [str],
            "season": Number(1, 2**32, integer=True),
            "num_series": _COUNT,
            "clock": {
                "unit": str,
                "step": Number(1, 2**53, integer=True),
                "form": str,
                "day": Number(0, 31, integer=True),
                "second": Number(0, 86_400, integer=True),
            },
        },
    },
    "convolutions?": str,
    "best?": {"best_metric": str, "higher_is_better": bool},
    "pretrained?": {"sha256": str},
    "teacher?": {"sha256": str},
    "command?": [str],
    "versions?": {str: str},
}
_SUMMARY: dict[Any, Any] = {
    "experiment": str, "status": str, "weights": str, "stopped?": str, "examples?": str, "platform": str,
    "versions": {str: str},
    "step": _COUNT, "epochs": Number(0), "num_params": _COUNT, "num_devices": _COUNT, "images_per_second": Number(0),
    "splits": {str: {"num_examples": _COUNT, "loss": _METRIC, str: _METRIC}},
    "seconds": dict.fromkeys((str, "setup", "compile", "train", "evaluate", "save"), Number(0)),
}  # fmt: skip


class TakenError(UserError):
    """Another process is training in the folder."""


def resolve(workdir: str) -> epath.Path:
    """An absolute path, or the URL as it is. Raises UserError for what can be none."""
    scheme, separator, _ = workdir.partition("://")
    if separator:
        if scheme not in SCHEMES:
            raise UserError(f"{workdir} is on no storage that is known; {nearest(scheme, SCHEMES)}, or a folder")
        return epath.Path(workdir)
    path = os.path.expanduser(workdir)
    if path.startswith("~"):
        raise UserError(f"{workdir}: there is no such user; for a folder of that name write ./{workdir}")
    return epath.Path(os.path.abspath(path))


def check(workdir: epath.Path, experiment: str, config: Config) -> bool:
    """Whether the folder holds this run already.

    Raises UserError if it cannot be this run's: it holds another run, or is not a run's folder at all.
    """
    try:
        if not workdir.exists():
            above = [] if is_remote(workdir) else workdir.parents
            file = next((each for each in above if each.exists() and not each.is_dir()), None)
            if file is not None:
                raise UserError(f"workdir {workdir} lies under {file}, which is a file; pass another --workdir")
            return False
        if not workdir.is_dir():
            raise UserError(f"workdir {workdir} is a file; pass --workdir a folder")
        names = {each.name for each in workdir.iterdir()} - _BESIDE
    except UserError:
        raise
    except Exception as error:  # gcsfs and google-auth have their own, which are no OSError
        raise UserError(f"workdir {workdir} cannot be read: {one_line(error)}") from None
    if "config.json" not in names:
        strangers = sorted(name for name in names if not name.startswith(".config.json."))
        if strangers:
            raise UserError(f"workdir {workdir} holds no run, but has {strangers[0]!r} in it; pass an empty --workdir")
        return False
    saved = read_config(workdir)
    if saved["experiment"] != experiment:
        raise UserError(f"workdir {workdir} holds a run of {saved['experiment']!r}; pass another --workdir")
    changed = changed_fields(from_dict(saved["config"]), config)
    if changed:
        raise UserError(
            f"workdir {workdir} holds a run with other settings: {', '.join(changed)}; pass another --workdir"
        )
    return True


def read_config(workdir: epath.Path) -> dict[str, Any]:
    """Content of config.json: `experiment`, `config`, `data`, `versions`; the config with every field of this version.

    Folders may come from anybody: of what is read here types and ranges are right, and lengths fit.

    Raises:
      UserError: there is no such run, or it is damaged.
    """
    file = workdir / "config.json"
    try:
        saved = read_json(file)
        check_schema(saved, _RUN, "it")
        _check_data_facts(saved["data"])
        config = from_dict(saved["config"])
        validate(config, unread=False)
        return {**saved, "config": to_dict(config)}
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no run: there is no config.json in it") from None
    except Exception as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}); is {workdir} a run's folder?") from None


def _check_data_facts(data: dict[str, Any]) -> None:
    """Raises ValueError unless what config.json says of the data fits together."""
    names, shape = data["class_names"], data["image_shape"]
    if shape is None:  # no images
        _check_table(data)
        return
    if not names or len(shape) != 3 or math.prod(shape) > LARGEST_IMAGE:
        raise ValueError(f"no network sees images of {shape} in {len(names)} classes")
    mean, std = data.get("mean", []), data.get("std", [])
    if not len(mean) == len(std) == shape[2]:
        raise ValueError(f"mean and std have {len(mean)} and {len(std)} values for {shape[2]} channels")
    for counts in (data.get("class_counts") or {}).values():
        if not counts:
            raise ValueError("class_counts is of no classes")


def _check_table(data: dict[str, Any]) -> None:
    """Raises ValueError unless what config.json says of a table's columns fits together."""
    if "table" not in data:
        return
    columns, mean, std = data["table"]["columns"], data.get("mean", []), data.get("std", [])
    if not 0 < len(columns) == len(mean) == len(std):
        raise ValueError(f"mean and std have {len(mean)} and {len(std)} values for {len(columns)} columns")
    if any(each["values"] is not None and not each["values"] for each in columns):
        raise ValueError("a column of text has no values")
    if not data["class_names"] and "target" not in data:
        raise ValueError("there are neither classes nor a mean of the target")


def rank_by(saved: dict[str, Any]) -> dict[str, Any]:
    """How a run's checkpoints are ranked, `best_metric` and `higher_is_better`, from what `read_config` gave."""
    if "best" in saved:
        return saved["best"]
    optimizer = saved["config"]["optimizer"]  # runs of before: classification, of which the loss alone is best when low
    averaged = optimizer["ema_decay"] is not None or optimizer["lookahead_every_steps"] is not None
    metric = saved["config"]["checkpoint"]["best_metric"] or "accuracy"
    return {"best_metric": f"ema_{metric}" if averaged else metric, "higher_is_better": metric != "loss"}


def saved_data(workdir: epath.Path) -> dict[str, Any] | None:
    """Facts of the data in config.json, where there is one: their statistics are the run's for good."""
    return read_config(workdir)["data"] if (workdir / "config.json").exists() else None


def saved_convolutions(workdir: epath.Path) -> str | None:
    """What computed the convolutions of the run that began there; versions before oneDNN did not say it."""
    return read_config(workdir).get("convolutions", "matrix products") if (workdir / "config.json").exists() else None


def read_summary(workdir: epath.Path) -> dict[str, Any] | None:
    """Content of summary.json, which only a finished run has; one that is damaged is written again."""
    try:
        summary = finite(read_json(workdir / "summary.json"))
    except (OSError, ValueError):
        return None
    return summary if conforms(summary, _SUMMARY) and summary["status"] == "finished" else None


def read_splits(workdir: epath.Path) -> dict[str, Any] | None:
    """Content of splits.npz, the records of each split; None without one. Raises UserError where it is damaged."""
    import numpy as np  # not needed where a command only says what is wrong with it

    file = workdir / "splits.npz"
    try:
        content = io.BytesIO(read_bytes(file, limit=LARGEST_SPLITS))
        if sum(each.file_size for each in zipfile.ZipFile(content).infolist()) > 8 * LARGEST_SPLITS:
            raise ValueError("too large")
        with np.load(content) as stored:
            splits = {**stored, "fingerprint": str(stored["fingerprint"])}
        for name, numbers in splits.items():
            if name != "fingerprint" and not (
                re.fullmatch(r"(train|validation|test)/[0-9]+/.+", name)
                and numbers.dtype.kind == "i"
                and numbers.ndim == 1
            ):
                raise ValueError(f"{name} is no list of records of a split")
        return splits
    except FileNotFoundError:
        return None
    except Exception as error:
        raise UserError(
            f"{file} is damaged ({one_line(error)}); delete it, and it is made anew where this version splits alike"
        ) from None


def check_data(workdir: epath.Path, saved: dict[str, Any], data: dict[str, Any]) -> None:
    """Raises UserError unless the data and their splits are those of the run. Both are data facts of a run."""
    check_same_data(saved["fingerprint"], data["fingerprint"], f"the run in {workdir}")
    if saved.get("splits") != data["splits"]:
        raise UserError(
            f"workdir {workdir} holds a run with other splits of the data, and no splits.npz of that run; pass another "
            "--workdir"
        )


def check_excluded(workdir: epath.Path, file: str | None, digest: str | None) -> None:
    """Raises UserError unless an exclusion list says what it said when the run in the folder, if any, began."""
    saved = saved_data(workdir)
    if saved is not None and saved.get("excluded", {}).get("digest") != digest:
        raise UserError(
            f"data.exclude={file} does not say what it said when the run in {workdir} began; pass another --workdir"
        )


def has_checkpoints(workdir: epath.Path) -> bool:
    """Whether a run in the folder goes on from a checkpoint rather than begins."""
    return newest_step(workdir) is not None


def newest_step(workdir: epath.Path) -> int | None:
    """The step of the newest checkpoint in the folder; None where there is none."""
    folder = workdir / "checkpoints"
    if not folder.exists():
        return None
    return max((int(each.name) for each in folder.iterdir() if each.name.isdigit()), default=None)


def write_config(
    workdir: epath.Path,
    experiment: str,
    config: Config,
    data: dict[str, Any],
    versions: Any,
    *,
    pretrained: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    best: dict[str, Any] | None = None,
    convolutions: str | None = None,
) -> None:
    """Makes the folder this run's.

    Args:
      pretrained: facts of the weights that the run begins with now, if it does.
      teacher: facts of the weights that it learns from, if it does.
      best: how its checkpoints are ranked, as `rank_by` gives it.
      convolutions: what computes them, where that is a choice.

    Raises:
      UserError: it cannot be written, or the data or weights are not those that the run in it was trained on.
    """
    if (workdir / "config.json").exists():
        saved_config = read_config(workdir)
        saved = saved_config["data"]
        if pretrained is not None and saved_config.get("pretrained", pretrained)["sha256"] != pretrained["sha256"]:
            raise UserError(
                f"init_from={config.init_from} does not hold what it held when the run in {workdir} began; pass "
                "another --workdir"
            )
        if (teacher or {}).get("sha256") != saved_config.get("teacher", {}).get("sha256"):
            raise UserError(
                f"distill.teacher={config.distill.teacher} does not hold what it held when the run in {workdir} began; "
                "pass another --workdir"
            )
        check_data(workdir, saved, data)
        check_excluded(workdir, config.data.exclude, data["excluded"]["digest"])
        return
    content = {
        "experiment": experiment,
        "config": to_dict(config),
        "data": data,
        **({} if pretrained is None else {"pretrained": pretrained}),
        **({} if teacher is None else {"teacher": teacher}),
        **({} if best is None else {"best": best}),
        **({} if convolutions is None else {"convolutions": convolutions}),
        "command": sys.argv,
        "versions": versions,
    }
    try:
        write_atomically(workdir / "config.json", to_json(content, indent=2) + "\n")
    except Exception as error:  # in a bucket there are no folders to make: this is the first thing written
        raise UserError(f"workdir {workdir} cannot be written: {one_line(error)}") from None


def write_splits(workdir: epath.Path, record_numbers: dict[str, Any]) -> None:
    """Writes the records of each split, unless that file is there already."""
    file = workdir / "splits.npz"
    if file.exists():
        return
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, **record_numbers)
    try:
        write_atomically(file, content.getvalue())
    except Exception as error:
        raise UserError(f"workdir {workdir} cannot be written: {one_line(error)}") from None


@contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """Makes the folder, and keeps a second process out of it where it is local. Raises UserError, TakenError."""
    with ExitStack() as stack:
        existed, local = False, not is_remote(workdir)
        try:
            existed = workdir.exists()
            workdir.mkdir(parents=True, exist_ok=True)
            if local:
                stack.enter_context(locked(workdir / _LOCK))
        except BlockingIOError:
            raise TakenError(
                f"another process is training in {workdir}; wait for it, or pass another --workdir"
            ) from None
        except Exception as error:
            raise UserError(f"workdir {workdir} cannot be written: {one_line(error)}") from None
        try:
            check_links(workdir, "checkpoints", "damaged_checkpoints", "tensorboard")
            yield
        finally:
            # A command that was refused later on leaves nothing behind.
            if local and Path(workdir).is_dir() and [each.name for each in Path(workdir).iterdir()] == [_LOCK]:
                Path(workdir / _LOCK).unlink()
                if not existed:
                    Path(workdir).rmdir()


def is_taken(workdir: epath.Path) -> bool:
    """Whether another process is training in a local folder now."""
    try:
        with locked(workdir / _LOCK):
            return False
    except BlockingIOError:
        return True
    except OSError:  # there is no such folder
        return False


def check_links(workdir: epath.Path, *names: str) -> None:
    """Raises UserError where a folder that is written to, or one in it, is a link, which may lead anywhere."""
    if is_remote(workdir):
        return
    for pattern in (pattern for name in names for pattern in (name, f"{name}/*")):
        for each in Path(workdir).glob(pattern):
            if each.is_symlink() and each.is_dir():
                raise UserError(
                    f"{each} is a link, and nothing is written through it; move what it leads to there, or make all of "
                    f"{workdir} a link"
                )
