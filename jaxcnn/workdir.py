"""A run's folder: whose it is, and what it says. Refuses to mix two runs in one folder."""

import fcntl
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from jaxcnn.config import Config, changed_fields, from_dict, to_dict
from jaxcnn.errors import UserError
from jaxcnn.files import write_atomically
from jaxcnn.fingerprints import check_same_data

_LOCK = ".lock"


def resolve(workdir: str) -> epath.Path:
    """An absolute path, or the URL as it is."""
    return epath.Path(workdir) if "://" in workdir else epath.Path(os.path.abspath(os.path.expanduser(workdir)))


def check(workdir: epath.Path, experiment: str, config: Config) -> None:
    """Raises UserError if the folder cannot be this run's: it holds another run, or is not a run's folder at all."""
    try:
        if not workdir.exists():
            return
        if not workdir.is_dir():
            raise UserError(f"workdir {workdir} is a file; pass --workdir a folder")
        names = {each.name for each in workdir.iterdir()} - {_LOCK}
    except UserError:
        raise
    except Exception as error:  # gcsfs and google-auth have their own, which are no OSError
        raise UserError(f"workdir {workdir} cannot be read: {_line(error)}") from None
    if "config.json" not in names:
        strangers = sorted(name for name in names if not name.startswith(".config.json."))
        if strangers:
            raise UserError(f"workdir {workdir} holds no run, but has {strangers[0]!r} in it; pass an empty --workdir")
        return
    saved = read_config(workdir)
    if saved["experiment"] != experiment:
        raise UserError(f"workdir {workdir} holds a run of {saved['experiment']!r}; pass another --workdir")
    changed = changed_fields(from_dict(saved["config"]), config)
    if changed:
        raise UserError(
            f"workdir {workdir} holds a run with other settings: {', '.join(changed)}; pass another --workdir"
        )


def read_config(workdir: epath.Path) -> dict[str, Any]:
    """What config.json says: `experiment`, `config`, `data`, `versions`. Raises UserError if there is no such run."""
    file = workdir / "config.json"
    try:
        saved = json.loads(file.read_text())
        if not {"experiment", "config", "data"} <= saved.keys():
            raise ValueError("fields are missing")
        return saved
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no run: there is no config.json in it") from None
    except Exception as error:
        raise UserError(f"{file} cannot be read ({_line(error)}); is {workdir} a run's folder?") from None


def saved_data(workdir: epath.Path) -> dict[str, Any] | None:
    """What config.json says of the data, where there is one: their statistics are the run's for good."""
    return read_config(workdir)["data"] if (workdir / "config.json").exists() else None


def read_summary(workdir: epath.Path) -> dict[str, Any] | None:
    """summary.json, which only a finished run has; one that is damaged is written again."""
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        return summary if summary["status"] == "finished" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_splits(workdir: epath.Path) -> dict[str, Any] | None:
    """splits.npz, which records are in which split; none where there is none. Raises UserError where it is damaged."""
    import numpy as np  # not needed where a command only says what is wrong with it

    file = workdir / "splits.npz"
    try:
        with np.load(io.BytesIO(file.read_bytes())) as stored:
            return {"fingerprint": stored["fingerprint"], **stored}
    except FileNotFoundError:
        return None
    except Exception as error:
        raise UserError(
            f"{file} is damaged ({_line(error)}); delete it, and it is made anew where this version splits as that one"
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
    folder = workdir / "checkpoints"
    return folder.exists() and any(each.name.isdigit() for each in folder.iterdir())


def write_config(
    workdir: epath.Path,
    experiment: str,
    config: Config,
    data: dict[str, Any],
    versions: Any,
    *,
    pretrained: dict[str, Any] | None = None,
) -> None:
    """Makes the folder this run's.

    Args:
      pretrained: facts of the weights that the run begins with now, if it does.

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
        check_data(workdir, saved, data)
        check_excluded(workdir, config.data.exclude, data["excluded"]["digest"])
        return
    content = {
        "experiment": experiment,
        "config": to_dict(config),
        "data": data,
        **({} if pretrained is None else {"pretrained": pretrained}),
        "command": sys.argv,
        "versions": versions,
    }
    try:
        write_atomically(workdir / "config.json", json.dumps(content, indent=2) + "\n")
    except Exception as error:  # in a bucket there are no folders to make: this is the first thing written
        raise UserError(f"workdir {workdir} cannot be written: {_line(error)}") from None


def write_splits(workdir: epath.Path, record_numbers: dict[str, Any]) -> None:
    """Keeps which records are in which split, unless that is kept already."""
    file = workdir / "splits.npz"
    if file.exists():
        return
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, **record_numbers)
    try:
        write_atomically(file, content.getvalue())
    except Exception as error:
        raise UserError(f"workdir {workdir} cannot be written: {_line(error)}") from None


@contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """Makes the folder, and keeps a second process out of it where it is local. Raises UserError."""
    with ExitStack() as stack:
        existed = False
        try:
            existed = workdir.exists()
            workdir.mkdir(parents=True, exist_ok=True)
            if "://" not in os.fspath(workdir):
                lock = stack.enter_context(Path(workdir / _LOCK).open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {workdir}; wait for it, or pass another --workdir"
            ) from None
        except Exception as error:
            raise UserError(f"workdir {workdir} cannot be written: {_line(error)}") from None
        try:
            yield
        finally:
            # A command that was refused later on leaves nothing behind.
            if "://" not in os.fspath(workdir) and [each.name for each in Path(workdir).iterdir()] == [_LOCK]:
                Path(workdir / _LOCK).unlink()
                if not existed:
                    Path(workdir).rmdir()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
