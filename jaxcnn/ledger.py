"""The ledger of published results, docs/results.json: python -m jaxcnn.ledger prints it.

--write writes its tables into README.md and docs/results.md. --add NAME RUN [RUN …] makes or renews a row of finished
runs that differ in their seed alone, or of STUDY:VARIANT. --check NAME [--seeds 3] trains the row's command anew, with
other seeds: exit code 0 where their mean is what the row lets expect, 1 where not, 2 a wrong command. docs/results.md.
"""

import contextlib
import datetime
import re
import statistics
import subprocess
import tempfile
import time
from typing import Any

from absl import flags
from etils import epath
from rich.table import Table

from jaxcnn.ablation.ledger import (
    COLUMNS,
    Row,
    config_of,
    digest_of,
    expected,
    find_row,
    markdown,
    new_seeds,
    read_rows,
    score_words,
    write_rows,
)
from jaxcnn.ablation.ledger_runs import row_of, score_of
from jaxcnn.command import HELP_FLAGS, flags_help, parse_flags, run_command, show_help
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.files import check_writable, read_text, write_atomically
from jaxcnn.fingerprints import same_data
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import PatientConsole, one_line
from jaxcnn.train import Order, train

LEDGER = "docs/results.json"
PAGES = {  # which columns of the table they show
    "README.md": ("command", "data", "n", "test accuracy", "training"),
    "docs/results.md": tuple(COLUMNS),
}
_SHOWN = ("row", "data", "n", "test accuracy", "95 % interval", "training", "measured")  # what a terminal has room for
_MARKERS = re.compile("(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
_OPTIONS = {  # what each of them takes beside it
    "add": {"write", "metric", "split", "experiment", "words", "hardware"},
    "check": {"seeds", "workdir"},
}


def main(argv: list[str], start: float) -> int:
    """Parses, reads, adds, checks or writes, prints; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_bool("write", False, "write the tables of README.md and docs/results.md", flag_values=values)
    flags.DEFINE_string("add", None, "the row to make or renew, of the runs that follow", flag_values=values)
    flags.DEFINE_string("metric", None, "of --add; the study's, or what chose the weights", flag_values=values)
    flags.DEFINE_string("split", None, "of --add; the study's, or test", flag_values=values)
    flags.DEFINE_string("experiment", None, "of --add, where the command begins; the runs' own", flag_values=values)
    flags.DEFINE_string("words", None, "of --add: how the table calls the data", flag_values=values)
    flags.DEFINE_string("hardware", None, "of --add: the machine, in words", flag_values=values)
    flags.DEFINE_string("check", None, "the row to train anew", flag_values=values)
    flags.DEFINE_integer("seeds", 3, "of --check: how many new runs", 1, 1000, flag_values=values)
    flags.DEFINE_string("workdir", None, "of --check: keeps the runs there, and goes on with them", flag_values=values)
    flags.DEFINE_string("root", ".", "the project's folder", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    runs = parse_flags(values, argv)
    _check_flags(values, runs)
    root = workdir_lib.resolve(values.root)
    rows = read_rows(root / LEDGER)
    console = PatientConsole(soft_wrap=True)
    if values.check is not None:
        return _check(find_row(rows, values.check), values, root, console)
    if values.add is not None:
        row = _with_words(row_of(values.add, runs, root=root, **_given(values)), rows, values, root)
        rows = [row if each["name"] == row["name"] else each for each in rows]
        rows += [] if row in rows else [row]
    pages = _pages(root, rows) if values.write else {}
    if values.add is not None:
        _writable(root / LEDGER)
        write_rows(root / LEDGER, rows)
    for file, text in pages.items():
        write_atomically(file, text)
    _show(rows, console)
    return 0


def _check_flags(values: flags.FlagValues, runs: list[str]) -> None:
    """Raises UserError for options that do not go together, or would not be read."""
    given = {name for name in values if values[name].present} - {"root"}
    modes = [name for name in ("add", "check") if values[name].value is not None]
    if len(modes) == 2:
        raise UserError("--add and --check are two commands; give one of them")
    for mode in modes:
        if not re.fullmatch(r"[\w.+-]{1,80}", name := str(values[mode].value)):
            raise UserError(f"--{mode}={name!r} can be no row's name; use letters, digits, _ . + -")
    allowed = _OPTIONS[modes[0]] if modes else {"write"}
    if unread := sorted(given - set(modes) - allowed):
        takers = [f"--{mode}" for mode, options in _OPTIONS.items() if unread[0] in options]
        raise UserError(f"--{unread[0]} is read with {' or '.join(takers) or 'another command'} alone; leave it out")
    if values.add is not None and not runs:
        raise UserError(
            f"--add={values.add} has no runs; name their folders after it: --add {values.add} runs/a runs/b"
        )
    if values.add is None and runs:
        raise UserError(f"unexpected argument {runs[0]!r}; options are written --name=value")


def _given(values: flags.FlagValues) -> dict[str, Any]:
    return {name: values[name].value for name in ("metric", "split", "experiment")}


def _show(rows: list[Row], console: PatientConsole) -> None:
    table = Table(title=f"{len(rows)} results", title_justify="left")
    for name in _SHOWN:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(COLUMNS[name](row) for name in _SHOWN))
    console.print(table)


# ---- adding


def _with_words(row: Row, rows: list[Row], values: flags.FlagValues, root: epath.Path) -> Row:
    """The row with what runs do not tell: words, which stay as they were unless they are given, commit and date."""
    before = next((each for each in rows if each["name"] == row["name"]), None)
    words = values.words or (before["data"]["words"] if before else row["data"]["name"])
    hardware = values.hardware or (before["hardware"] if before else None)
    if not hardware:
        raise UserError(
            "the row says nothing of the machine; pass --hardware, e.g. --hardware '8 cores of an AMD EPYC'"
        )
    return {
        **row,
        "data": {**row["data"], "words": words},
        "hardware": hardware,
        "commit": _commit(root),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _commit(root: epath.Path) -> str | None:
    """The commit of the code in a checkout, and whether the code has changed since; none outside of a checkout."""
    try:
        commit = _git(root, "rev-parse", "--short=10", "HEAD").strip()
        return f"{commit}, changed" if _git(root, "status", "--porcelain", "--", "jaxcnn", "experiments") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: epath.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# ---- the pages


def filled(text: str, rows: list[Row], columns: tuple[str, ...]) -> str:
    """A page with the table between its markers. Raises ValueError where it has none, or several."""
    table = markdown(rows, columns)
    text, count = _MARKERS.subn(lambda match: match[1] + table + match[2], text)
    if count != 1:
        raise ValueError(f"it has {count} pairs of <!-- results --> and <!-- /results -->, not one")
    return text


def _pages(root: epath.Path, rows: list[Row]) -> dict[epath.Path, str]:
    """The pages as they will be. Raises UserError where one cannot be read or written."""
    pages = {}
    for name, columns in PAGES.items():
        file = root / name
        try:
            pages[file] = filled(read_text(file), rows, columns)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} takes no table: {one_line(error)}") from None
        _writable(file)
    return pages


def _writable(file: epath.Path) -> None:
    try:
        check_writable(file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; pass another --root") from None


# ---- checking


def _check(row: Row, values: flags.FlagValues, root: epath.Path, console: PatientConsole) -> int:
    """Trains the row's command with new seeds; 0 where their mean is in the prediction interval. Raises RunError."""
    low, high = expected(row, values.seeds)
    if row["config_digest"] not in (None, digest_of(config_of(root, row["command"]))):
        console.print(f"the config of {row['name']}'s command is no longer that of the row: this checks today's")
    with contextlib.ExitStack() as stack:
        folder = values.workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcnn-ledger-"))
        try:
            scores = [
                _score(row, root, seed, workdir_lib.resolve(folder) / f"seed-{seed}")
                for seed in new_seeds(row, values.seeds)
            ]
        except Preempted as stopped:
            if values.workdir:
                raise
            raise Preempted(f"{str(stopped).partition(':')[0]}: nothing is kept without --workdir") from None
    mean = statistics.fmean(scores)
    words = (
        f"{row['name']}: {score_words(row, mean)}, the mean of {len(scores)} new run(s); the row lets expect "
        f"{score_words(row, low, high)}"
    )
    console.print(f"scores: {', '.join(score_words(row, score) for score in scores)}")
    if not low <= mean <= high:
        raise RunError(f"{words}: it is outside")
    console.print(f"{words}: it is inside")
    return 0


def _score(row: Row, root: epath.Path, seed: int, workdir: epath.Path) -> float:
    """Of one new run. Raises UserError where its data are not the row's."""
    config = config_of(root, row["command"], f"--config.seed={seed}")
    summary = train(Order(config, row["experiment"], workdir), start=time.perf_counter())
    fingerprint = workdir_lib.read_config(workdir)["data"]["fingerprint"]
    if row["data"]["fingerprint"] is not None and not same_data(row["data"]["fingerprint"], fingerprint):
        raise UserError(f"the data of {row['name']} here are not those of the row; nothing can be said of its scores")
    return score_of(workdir, summary, row["metric"], row["split"])


if __name__ == "__main__":
    run_command(main)
