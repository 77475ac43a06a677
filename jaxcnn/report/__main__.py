"""Writes report.html about runs, or a study: python -m jaxcnn.report --workdir DIR [DIR2 …] [--output DIR] [--quick]

One page that needs nothing else, and report/ beside it with its figures as PNGs, in the first folder or --output; of a
study tensorboard/ too.
Exit codes: 0 done; 1 a section could not be made, which the page says; 2 the command or a folder is wrong.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from absl import flags
from etils import epath

import jaxcnn
from jaxcnn.command import HELP_FLAGS, check_outputs, check_step, flags_help, parse_flags, run_command, show_help
from jaxcnn.config.choices import TASKS, load_function
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.files import write_atomically
from jaxcnn.report import study_board
from jaxcnn.report.files import RunFiles, read_runs, shown_name
from jaxcnn.report.study_files import SearchFiles, StudyFiles, holds_study, search_of, study_of
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog
from jaxcnn.terminal import complain, one_line

SPLITS = ("train", "validation", "test")
OF_A_NETWORK = ("split", "step", "image", "data_dir")  # flags
Attempt = Callable[[str, Callable[[], Any]], Any]  # a section's title and what makes it -> the section


def main(argv: list[str], start: float) -> int:
    """Parses, gathers, draws, writes; returns the exit code."""
    del start
    values = flags.FlagValues()
    flags.DEFINE_multi_string("workdir", None, "a run's folder; more may follow it", flag_values=values)
    flags.DEFINE_string("output", None, "where report.html goes; the first run's folder", flag_values=values)
    flags.DEFINE_bool("quick", False, "only what the runs' files say: no network, no data", flag_values=values)
    flags.DEFINE_string("split", "test", "train, validation or test: what is measured", flag_values=values)
    flags.DEFINE_string("step", "best", "which checkpoint: best (on validation), last, or its step", flag_values=values)
    flags.DEFINE_integer("image", 0, "of the split, whose feature maps are shown", 0, 2**31 - 1, flag_values=values)
    flags.DEFINE_string("data_dir", None, "where prepared sets lie, if not where they did", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    more = parse_flags(values, argv)
    workdirs = [*(values.workdir or []), *more]
    if not workdirs or not all(workdirs):
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    if values.split not in SPLITS:
        raise UserError(f"--split={values.split} is not known; {nearest(values.split, SPLITS)}")
    check_step(values.step)
    check_outputs(values, "output", folder=True)
    folders = [workdir_lib.resolve(each) for each in workdirs]
    study, compared = next((folder for folder in folders if holds_study(folder)), None), None
    if study is not None:
        _check_alone(study, folders, values)
        compared = study_of(study)
        make_page = partial(make_of_study, compared, search_of(study))
    else:
        make_page = partial(make, read_runs(workdirs), values)
    output = workdir_lib.resolve(values.output) if values.output else folders[0]
    log = RunLog(output, tensorboard=False)
    workdir_lib.check_links(output, "report", *([] if compared is None else study_board.FOLDERS))
    with writing(output):
        (output / "report").mkdir(parents=True, exist_ok=True)  # said now, not in a minute
    html, pictures, failed = make_page(log)
    with writing(output):
        for name, content in pictures.items():
            (output / "report" / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output / "report" / name, content)
        write_atomically(output / "report.html", html.encode())
        if compared is not None:
            study_board.write_board(compared, output / study_board.FOLDER)
    log.say(f"{output / 'report.html'}: {len(html.encode()) / 1e6:.1f} MB; {len(pictures)} PNGs in {output / 'report'}")
    return int(failed)


def _check_alone(study: epath.Path, folders: Sequence[epath.Path], values: flags.FlagValues) -> None:
    """Raises UserError where more is asked of a study's page than it has."""
    if len(folders) > 1:
        raise UserError(f"{study} holds a study, which has a page of its own; pass it alone, or folders of runs")
    asked = next((name for name in OF_A_NETWORK if values[name].present), None)
    if asked is not None:
        raise UserError(
            f"--{asked} is of a run's network, and {study} holds a study; leave it out, or pass a run of it"
        )


@contextmanager
def writing(folder: Any) -> Iterator[None]:
    """A block that writes into a folder. Raises UserError where it cannot."""
    try:
        yield
    except Exception as error:  # a bucket's own errors are no OSError
        raise UserError(f"{folder} cannot be written ({one_line(error)}); pass another --output") from None


def make(runs: list[RunFiles], values: Any, log: RunLog) -> tuple[str, dict[str, bytes], bool]:
    """(the page, PNGs by name, whether a section failed)."""
    from jaxcnn.report import from_files
    from jaxcnn.report.page import Chapter, Section, page, paragraph, words

    pictures: dict[str, bytes] = {}
    failures: list[str] = []

    def attempt(title: str, section: Callable[[], Section], folder: str) -> Section:
        made = _attempt(title, section, failures)
        pictures.update({folder + name: content for name, content in made.pictures.items()})
        return made

    shared = [attempt("Training", partial(from_files.curves, runs), "")]
    if len(runs) > 1:
        shared.insert(0, attempt("Results", partial(from_files.comparison, runs), ""))
    alone = len(runs) == 1
    chapters = [] if alone else [Chapter("Comparison", shared)]
    for number, run in enumerate(runs, start=1):
        folder = "" if alone else f"{number}-{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name).strip('.-')}/"
        of_run: Attempt = partial(attempt, folder=folder)
        task = TASKS[run.saved["config"]["task"]]
        seen: list[Any] = []
        predictions = None
        if task.looks_inside and not values.quick:
            seen, predictions = _of_network(run, values, log, of_run)
        elif task.sections and not values.quick:
            own = load_function(task.sections)(run, values, log.work)
            seen = [of_run(title, section) for title, section in own.items()]
        sections = [
            of_run("Diagnosis", partial(from_files.diagnosis, run, predictions)),
            *(shared if alone else []),
            *seen,
            of_run("Record", partial(from_files.record, run)),
        ]
        overview = of_run("Overview", partial(from_files.overview, run)).body
        chapters.append(Chapter(run.name, sections, "" if alone else overview))
    if alone:
        title, lead = f"{runs[0].saved['experiment']}: report", f"<h1>{words(runs[0].name)}</h1>{overview}"
    else:
        title = f"{len(runs)} runs compared"
        lead = f"<h1>{title}</h1>" + paragraph(", ".join(words(run.name) for run in runs), css="soft")
    quick = " Made with --quick: without it, the network and its data are looked at too." if values.quick else ""
    footer = f"Made by jaxcnn {jaxcnn.__version__}: python -m jaxcnn.report.{quick}"
    return page(title, lead, chapters, footer=footer), pictures, bool(failures)


def make_of_study(
    study: StudyFiles | None, search: SearchFiles | None, log: RunLog
) -> tuple[str, dict[str, bytes], bool]:
    """The same of a study's folder, which holds runs that are compared, a search, or both."""
    from jaxcnn.report import from_search, from_study
    from jaxcnn.report.page import Chapter, Section, page, words

    parts: dict[str, Callable[[], Section]] = {}
    lead: list[str] = []
    failures: list[str] = []
    pieces: list[tuple[Any, Any]] = [(study, from_study), (search, from_search)]
    for found, module in pieces:
        if found is not None:
            name = shown_name(found.folder.name)
            lead.append(_attempt("Overview", partial(module.overview, found), failures).body)
            parts |= module.sections(found)
    made = [_attempt(title, section, failures) for title, section in parts.items()]
    footer = f"Made by jaxcnn {jaxcnn.__version__}: python -m jaxcnn.report."
    html = page(f"{name}: report", f"<h1>{words(name)}</h1>{''.join(lead)}", [Chapter(name, made)], footer=footer)
    return html, {name: content for section in made for name, content in section.pictures.items()}, bool(failures)


def _of_network(run: RunFiles, values: Any, log: RunLog, attempt: Attempt) -> tuple[list[Any], Any]:
    """(sections, the split's predictions or None where it could not be measured)."""
    from jaxcnn.report.from_network import SECTIONS
    from jaxcnn.report.opened import Opened
    from jaxcnn.training.parallel import set_up

    set_up(None, compilation_cache=run.saved["config"].get("compilation_cache", True))
    opened = Opened(run, values.step, values.split, values.image, values.data_dir, log.work)
    made = []
    for title, section in SECTIONS.items():
        since = time.perf_counter()
        made.append(attempt(title, partial(section, opened)))
        log.say(f"{run.name}: {title.lower()}, {time.perf_counter() - since:.1f} s")
    return made, opened.predictions


def _attempt(title: str, section: Callable[[], Any], failures: list[str]) -> Any:
    """The section; or one that says why it is not there, so that a page is never lost for a piece of it."""
    from jaxcnn.report.page import Section, absent

    try:
        return section()
    except (UserError, RunError) as error:
        return Section(title, absent(f"Not here: {error}"))
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        complain(f"report: {title!r} could not be made: {reason}")
        failures.append(title)
        return Section(title, absent(f"Could not be made: {reason}"))


if __name__ == "__main__":
    run_command(main, less_memory="--quick makes the page of the run's files alone")
