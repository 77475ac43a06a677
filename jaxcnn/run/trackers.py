"""Trackers beside TensorBoard: Weights & Biases and MLflow, a thin writer each. Off by default; extras of the package.

What they are told is what metrics.jsonl holds, each row once, however often the run was killed. A tracker that fails is
given up with one line, and the run goes on.
"""

import contextlib
import importlib.util
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from jaxcnn.errors import UserError, nearest
from jaxcnn.files import is_remote, read_json, to_json, write_atomically
from jaxcnn.plain_data import conforms
from jaxcnn.run.workdir import check_links
from jaxcnn.terminal import complain, one_line

PROJECT = "jaxcnn"  # unless $WANDB_PROJECT or $MLFLOW_EXPERIMENT_NAME name another
_IDS = "trackers.json"  # in a run's folder: what each tracker calls the run
_ID = re.compile("[0-9a-f]{16,32}")
_FOLDERS = {"wandb": "wandb", "mlflow": "mlruns"}  # in a run's folder, unless they are told to write elsewhere
_PATIENCE = 30  # seconds for a server of W&B's to begin, and to take what is left at the end
# What the packages read of the environment, unless it says otherwise. Nothing but the run itself is told to anyone; a
# server that does not answer costs seconds, where MLflow's own number of tries took four minutes.
_ENVIRONMENT = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"},
    "mlflow": {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    },
}


class Tracker(Protocol):
    """Where a run is told of."""

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Values at a step; steps do not fall."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """The end, with what summary.json holds where the run has finished."""


def check(names: Sequence[str], workdir: epath.Path) -> None:
    """Raises UserError where a tracker is not known, not installed, or has no place to write."""
    for name in names:
        if name not in _MADE_BY:
            raise UserError(f"trackers={name!r} is not known; {nearest(name, _MADE_BY)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers={name} needs its package: pip install 'jaxcnn[{name}]'")
        if is_remote(workdir) and _is_local(name):
            variable = "WANDB_MODE=online" if name == "wandb" else "MLFLOW_TRACKING_URI to a server"
            raise UserError(f"trackers={name} writes local files, and {workdir} is none; set {variable}")
        folder = os.path.join(workdir, _FOLDERS[name])
        if not is_remote(workdir) and os.path.islink(folder):
            raise UserError(f"{folder} is a link, and nothing is written through it; move what it leads to there")
    if "mlflow" in names:  # W&B's folder has links of its own
        check_links(workdir, _FOLDERS["mlflow"])


def _is_local(name: str) -> bool:
    if name == "wandb":
        return os.environ.get("WANDB_MODE", "offline") != "online"
    return not os.environ.get("MLFLOW_TRACKING_URI")


class Trackers:
    """All trackers of a run."""

    def __init__(
        self,
        names: Sequence[str],
        workdir: epath.Path,
        rows: Iterable[Mapping[str, Any]],
        *,
        study: str,
        config: Mapping[str, Any],
    ):
        """`rows` are those of metrics.jsonl so far; `config` is flat; `study` names the run's group, "" is none."""
        ids = _ids(workdir)
        self._open: dict[str, Tracker] = {}
        for name in names:
            with self._or_give_up(name):
                for variable, value in _ENVIRONMENT[name].items():
                    os.environ.setdefault(variable, value)
                self._open[name], ids[name] = _MADE_BY[name](ids.get(name, ""), workdir, study, config)
                write_atomically(workdir / _IDS, to_json(ids) + "\n")
        for row in rows:
            values = {name: value for name, value in row.items() if name not in ("step", "epoch", "split")}
            self.scalars(row["split"], row["step"], values)

    def scalars(self, split: str, step: int, values: Mapping[str, float | None]) -> None:
        """Tells each of them; values that are not finite, or None, are left out."""
        finite = {name: float(v) for name, v in values.items() if v is not None and math.isfinite(v)}
        self._tell(lambda tracker: tracker.scalars(split, step, finite))

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Ends them; a second time nothing."""
        self._tell(lambda tracker: tracker.close(summary))
        self._open.clear()

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._or_give_up(name):
                what(tracker)

    @contextlib.contextmanager
    def _or_give_up(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a network, a server, a disk: whatever a library has for it
            self._open.pop(name, None)
            complain(f"trackers={name} is given up, the run goes on ({type(error).__name__}: {one_line(error)[:160]})")


def _ids(workdir: epath.Path) -> dict[str, str]:
    """What the trackers call the run in a folder; none where that cannot be read."""
    try:
        found = read_json(workdir / _IDS)
    except (OSError, ValueError):
        return {}
    return {name: own for name, own in found.items() if _ID.fullmatch(own)} if conforms(found, {str: str}) else {}


def _of_wandb(known: str, workdir: epath.Path, study: str, config: Mapping[str, Any]) -> tuple[Tracker, str]:
    import wandb

    own, online = known or secrets.token_hex(8), os.environ["WANDB_MODE"] == "online"
    folder = None if is_remote(workdir) else os.fspath(workdir)
    if folder is not None and not online:
        # A kill loses what W&B had not written yet, and files of one run are not merged: this one is told all anew.
        for part in (Path(folder) / _FOLDERS["wandb"]).glob(f"offline-run-*-{own}"):
            shutil.rmtree(part)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=own,
        name=_name(workdir, study),
        group=study or None,
        dir=folder,
        resume="allow" if known and online else None,
        config=dict(config),
        settings=wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True,
            init_timeout=_PATIENCE, finish_timeout=_PATIENCE, finish_timeout_raises=True,
        ),
    )  # fmt: skip
    return _Wandb(run), own


class _Wandb:
    """A run of Weights & Biases. Rows are by our step; a server's run that goes on ignores those before its last."""

    def __init__(self, run: Any):
        self._run = run

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(_results(summary))
        self._run.finish(exit_code=0 if summary is not None else 1)


def _of_mlflow(known: str, workdir: epath.Path, study: str, config: Mapping[str, Any]) -> tuple[Tracker, str]:
    from mlflow.tracking import MlflowClient

    place = os.environ.get("MLFLOW_TRACKING_URI") or (Path(workdir) / "mlruns").as_uri()
    client = MlflowClient(tracking_uri=place)
    if known:
        client.update_run(known, status="RUNNING")
        return _Mlflow(client, known), known
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or study or PROJECT
    found = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if found is None else found.experiment_id
    run = client.create_run(number, run_name=_name(workdir, study))
    from mlflow.entities import Param

    params = [Param(name, str(value)[:500]) for name, value in config.items()]
    for start in range(0, len(params), 100):  # at most, says its server
        client.log_batch(run.info.run_id, params=params[start : start + 100])
    return _Mlflow(client, run.info.run_id), run.info.run_id


class _Mlflow:
    """A run of MLflow, which keeps every point that it is told: none is told twice."""

    def __init__(self, client: Any, run_id: str):
        self._client, self._run_id = client, run_id
        self._last: dict[str, int] = {}  # the last step of each metric that is there already
        for name in client.get_run(run_id).data.metrics:
            self._last[name] = max(point.step for point in client.get_metric_history(run_id, name))

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {f"{split}/{name}": value for name, value in values.items()}
        points = [Metric(name, value, now, step) for name, value in named.items() if step > self._last.get(name, -1)]
        if points:
            self._client.log_batch(self._run_id, metrics=points)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            for name, value in _results(summary).items():
                self._client.set_tag(self._run_id, name, str(value))
        self._client.set_terminated(self._run_id, "FINISHED" if summary is not None else "KILLED")


def _name(workdir: epath.Path, study: str) -> str:
    """`digits`; of a study's run what follows the study's folder: `learning_rate=0.1/seed-2`."""
    parts = workdir.parts
    return "/".join(parts[-2:]) if study else parts[-1]


def _results(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker is told at the end: which weights, and what they are worth on each split."""
    results = {
        f"result/{split}/{name}": value for split, values in summary["splits"].items() for name, value in values.items()
    }
    return {"result/weights": summary["weights"], **results}


# What each name stands for: (its name for the run or "", the folder, the study, the config) -> tracker, name.
_MADE_BY: dict[str, Callable[..., tuple[Tracker, str]]] = {"wandb": _of_wandb, "mlflow": _of_mlflow}
