"""Looks after data sets: python -m jaxcnn.data describe|check|prepare SET [--flags]

SET is a name as in --config.data.name; one of TFDS's may leave out `tfds:`.
Exit codes: 0 done, and checked without errors; 1 failed, or checked and errors found; 2 the command is wrong.
"""

import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
from rich.table import Table

from jaxcnn.command import HELP_FLAGS, check_outputs, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import Config, DataConfig
from jaxcnn.config.choices import SOURCES
from jaxcnn.config.command_line import load_config
from jaxcnn.data.records import StoredSet
from jaxcnn.data.sources import open_stored
from jaxcnn.data.tfds import prepared_sets, tfds_directory
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import to_json, write_atomically
from jaxcnn.run.log import RunLog
from jaxcnn.terminal import PatientConsole

_EXAMPLES = 3  # of each kind of fault, in the terminal's table
_SHEET_IMAGES = 16  # rows of a sheet of augmented images
_SHEET_VERSIONS = 8


def main(argv: list[str], start: float) -> int:
    """Runs the subcommand that argv[1] names; returns the exit code. `start` is the clock when the command began."""
    name = argv[1] if len(argv) > 1 else ""
    if name in HELP_FLAGS:
        show_help(f"{__doc__}\n" + "\n\n".join(_help(command) for command in COMMANDS))
        return 0
    if name not in COMMANDS:
        given = f"{name!r} is no command" if name else "no command given"
        raise UserError(f"{given}: {nearest(name, COMMANDS)}, e.g. python -m jaxcnn.data describe digits")
    if HELP_FLAGS & set(argv):
        show_help(_help(name))
        return 0
    if len(argv) < 3 or argv[2].startswith("-"):
        raise UserError(f"{name} needs a set right after it, e.g. python -m jaxcnn.data {name} tfds:cifar10")
    values = flags.FlagValues()
    command, define = COMMANDS[name]
    define(values)
    # --write-clean is --write_clean
    rest = [re.sub(r"^--?[\w-]+", lambda m: "--" + m[0].lstrip("-").replace("-", "_"), word) for word in argv[3:]]
    return command(argv[2], rest, values, start)


# ---- describe


def _describe_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("data_dir", None, "where prepared sets lie", flag_values=values)
    flags.DEFINE_integer(
        "image_size", None, "pixels: mean and std as a run of this size has them", 1, 2**13, flag_values=values
    )
    flags.DEFINE_string("sheet", None, "a PNG to draw: some images of each class", flag_values=values)
    flags.DEFINE_string(
        "augment",
        None,
        "EXPERIMENT[:ARG]: the sheet shows what its model will see; takes --config.a.b=v",
        flag_values=values,
    )
    flags.DEFINE_bool("json", False, "print JSON instead of tables", flag_values=values)
    flags.DEFINE_bool("force", False, "overwrite the sheet", flag_values=values)


def describe(name: str, rest: list[str], values: flags.FlagValues, start: float) -> int:
    """Prints what is in a set; draws a sheet of it."""
    del start
    config = _parse_with_config(name, rest, values)
    if values.augment and not values.sheet:
        raise UserError("--augment draws a sheet: say where, e.g. --sheet augmented.png")
    if values.sheet and Path(values.sheet).suffix != ".png":
        raise UserError(f"--sheet={values.sheet}: sheets are PNG files; give it a name that ends in .png")
    check_outputs(values, "sheet", overwrite=values.force)
    log = _log()
    stored = open_stored(config.data, progress=log.work)

    from jaxcnn.data import describing, sheet

    description = describing.describe(config.data.name, stored, image_size=values.image_size, progress=log.work)
    console = PatientConsole()
    if values.json:
        console.print(to_json(describing.as_json(description), indent=2), soft_wrap=True)
    else:
        describing.print_tables(console, description)
    if values.sheet:
        if values.augment:
            picture = _augmented_sheet(config, log)
        else:
            shown = stored.splits.get("train") or next(iter(stored.splits.values()))
            picture = sheet.draw(sheet.class_rows(shown, stored.class_names))
        write_atomically(values.sheet, sheet.png(picture))
        log.say(f"drawn: {values.sheet}")
    return 0


def _parse_with_config(name: str, rest: list[str], values: flags.FlagValues) -> Config:
    """Parses the flags into `values`; returns the config, --augment's or the default, with SET as its data."""
    chosen = next((word.partition("=")[2] for word in rest if word.startswith("--augment=")), None)
    if "--augment" in rest[:-1]:
        chosen = rest[rest.index("--augment") + 1]
    if chosen is None:
        if overrides := [word for word in rest if re.match(r"--?(no)?config\b", word)]:
            raise UserError(f"{overrides[0]} is for --augment EXPERIMENT, which is not given")
        _parse_own_flags(rest, values)
        config = Config()
    else:
        config, _ = load_config(["describe", f"--config={chosen}", *rest], flag_values=values)
    config.data.dir = values.data_dir or config.data.dir
    config.data.name = full_name(name, config.data.dir)
    config.data.image_size = values.image_size or config.data.image_size
    return config


def _augmented_sheet(config: Config, log: RunLog) -> Any:
    from jaxcnn.data.sheet import Row, draw
    from jaxcnn.results.augmented import augmented_images
    from jaxcnn.training.build import build  # imports JAX
    from jaxcnn.training.parallel import set_up

    set_up(config.platform, compilation_cache=config.compilation_cache)
    run, feed = build(config, progress=log.work)
    try:
        shown = augmented_images(run, feed, num_images=_SHEET_IMAGES, num_versions=_SHEET_VERSIONS)
    finally:
        feed.close()
    rows = [
        Row(run.source.class_names[int(label)], [original, *versions])
        for original, versions, label in zip(shown.originals, shown.versions, shown.labels, strict=True)
    ]
    return draw(rows, columns=["as stored", "step 0", "other draws"])


# ---- check


def _check_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("data_dir", None, "where prepared sets lie", flag_values=values)
    flags.DEFINE_string("exclude", None, "a list of records to leave out, as data.exclude", flag_values=values)
    flags.DEFINE_string(
        "write_clean", None, "write the list of records to leave out, for data.exclude", flag_values=values
    )
    flags.DEFINE_string("csv", None, "write every finding as a row", flag_values=values)
    flags.DEFINE_string("json", None, "write every finding, and the counts", flag_values=values)
    flags.DEFINE_float(
        "near_threshold",
        1.0,
        "near duplicates: false alarms to expect in all; more finds more, 0 none",
        0,
        1e6,
        flag_values=values,
    )
    flags.DEFINE_bool("force", False, "overwrite the files written", flag_values=values)


def check(name: str, rest: list[str], values: flags.FlagValues, start: float) -> int:
    """Prints what is wrong with a set, writes the lists asked for; 1 when there are errors among it."""
    _parse_own_flags(rest, values)
    if math.isnan(values.near_threshold):
        raise UserError("--near_threshold=nan is no number; give it 0 or more")
    check_outputs(values, "write_clean", "csv", "json", overwrite=values.force)
    log = _log()
    name = full_name(name, values.data_dir)
    stored = open_stored(DataConfig(name=name, dir=values.data_dir), progress=log.work, damaged=True)

    from jaxcnn.data import checking

    if values.exclude:
        stored = _without(stored, values.exclude, name)
    report = checking.check(stored, false_alarms=values.near_threshold, progress=log.work)
    console = PatientConsole()
    if report.faults:
        console.print(_faults_table(name, report))
    total = sum(report.num_images.values())
    counts = report.counts()
    severity_counts = [
        f"{sum(count for kind, count in counts.items() if checking.KINDS[kind].severity == severity):,} {severity}s"
        for severity in checking.SEVERITIES
    ]
    console.print(
        f"{name}: {total:,} images in {time.perf_counter() - start:.1f} s: {', '.join(severity_counts)}",
        markup=False,
        soft_wrap=True,
    )
    if values.csv:
        write_atomically(values.csv, checking.as_csv(report.faults))
    if values.json:
        write_atomically(values.json, to_json(checking.as_json(report), indent=2) + "\n")
    if values.write_clean:
        entries = write_clean_list(Path(values.write_clean), report)
        console.print(
            f"{entries:,} records to leave out: --config.data.exclude={values.write_clean}",
            soft_wrap=True,
        )
    return int(report.has_errors)


def write_clean_list(file: Path, report: Any) -> int:
    """Writes the records to leave out, with the rules as comments; returns their number."""
    from jaxcnn.data.checking import CLEAN_LIST_WORDS, to_exclude
    from jaxcnn.data.exclusion import write_exclusion

    entries = to_exclude(report)
    write_exclusion(file, entries, comments=CLEAN_LIST_WORDS)
    return len(entries)


def _without(stored: StoredSet, file: str, name: str) -> StoredSet:
    import dataclasses

    from jaxcnn.data.exclusion import read_exclusion, without

    splits, _ = without(stored.splits, read_exclusion(file), name)
    return dataclasses.replace(stored, splits=splits)


def _faults_table(name: str, report: Any) -> Table:
    from jaxcnn.data.checking import KINDS

    table = Table(title=f"what is wrong with {name}", title_justify="left")
    for column in ("", "what", "count", "for instance", "what to do"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for kind, count in report.counts().items():
        examples = [fault for fault in report.faults if fault.kind == kind][:_EXAMPLES]
        shown = "\n".join(
            " ".join(
                filter(
                    None,
                    (each.identifier or f"{each.split} {each.label}", each.other and f"~ {each.other}", each.detail),
                )
            )
            for each in examples
        )
        style = {"error": "red", "warning": "yellow", "note": ""}[KINDS[kind].severity]
        table.add_row(KINDS[kind].severity, KINDS[kind].title, f"{count:,}", shown, KINDS[kind].remedy, style=style)
    return table


# ---- prepare


def _prepare_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "data_dir", None, "where to put it; default $TFDS_DATA_DIR, else ~/tensorflow_datasets", flag_values=values
    )
    flags.DEFINE_multi_string("archive", [], "a file downloaded by hand; may be repeated", flag_values=values)


def prepare(name: str, rest: list[str], values: flags.FlagValues, start: float) -> int:
    """Downloads a set of TFDS's and stores it as runs read it; one that is there is left as it is."""
    del start
    _parse_own_flags(rest, values)

    from jaxcnn.data.prepare import prepare as prepare_set

    log = _log()
    archives = [Path(archive).expanduser() for archive in values.archive]
    folder = prepare_set(name.removeprefix("tfds:"), data_dir=values.data_dir, archives=archives, progress=log.work)
    log.say(f"prepared: {folder}")
    return 0


# ---- of all of them

COMMANDS: dict[
    str, tuple[Callable[[str, list[str], flags.FlagValues, float], int], Callable[[flags.FlagValues], None]]
] = {
    "describe": (describe, _describe_flags),
    "check": (check, _check_flags),
    "prepare": (prepare, _prepare_flags),
}


def _help(name: str) -> str:
    values = flags.FlagValues()
    command, define = COMMANDS[name]
    define(values)
    return f"python -m jaxcnn.data {name} SET: {command.__doc__}\n{flags_help(values)}"


def full_name(name: str, data_dir: str | None) -> str:
    """The name as data.name takes it: `tfds:` goes before the name of a set that TFDS has prepared, or could."""
    has_kind = name.partition(":")[0] in SOURCES
    match = re.fullmatch(r"(\w+)(/[^/:]+)?(:[\w.*]+)?", name)
    if has_kind or match is None or os.path.exists(name):
        return name
    if match[1] not in prepared_sets(tfds_directory(data_dir)):
        import tensorflow_datasets as tfds  # takes a second

        if match[1] not in tfds.list_builders(with_community_datasets=False):
            return name
    return f"tfds:{name}"


def _parse_own_flags(rest: list[str], values: flags.FlagValues) -> None:
    parse_flags(values, ["jaxcnn.data", *rest], takes_arguments=False)


def _log() -> RunLog:
    """Log of bars and remarks, on stderr: what a command prints may be piped."""
    console = PatientConsole(stderr=True, soft_wrap=True)
    return RunLog(epath.Path("."), tensorboard=False, console=console)


if __name__ == "__main__":
    run_command(main, less_memory="leave out the largest images, or look at part of them at a time")
