"""Trains: python -m jaxcnn.main --config experiments/cifar10.py [--config.a.b=v ...] [--workdir DIR] [--dry_run]

The same command again resumes, or prints the summary of a run that has finished. Exit codes: 0 finished, 1 failed,
2 wrong command, config or workdir, 75 stopped by a signal and saved.
"""

import contextlib
import locale
import logging
import os
import sys
import time
import traceback
from typing import Any, NoReturn

from absl import flags

from jaxcnn import stopping
from jaxcnn import workdir as workdir_lib
from jaxcnn.command_line import load_config, refuse_flagfile
from jaxcnn.config import Config, check_unread, flatten
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.logs import RunLog, closing_table
from jaxcnn.terminal import PatientConsole, complain, exit_code, one_line, shown, take_over

TRAINING_MEMORY = "lower batch_size, raise optimizer.accumulate, or set model.remat=true where the model has blocks"


def main(argv: list[str], start: float) -> int:
    """Parses, builds, trains, prints; returns the exit code. `start` is the clock when the command began."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder; default runs/<experiment>", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "resolve and show everything, train nothing", flag_values=values)
    if {"--help", "-help", "-h", "--helpfull"} & set(argv):
        fields = "\n".join(f"  {name} = {value!r}" for name, value in flatten(Config()).items())
        show_help(
            f"{__doc__}\n  --config: the experiment, FILE or FILE:ARG\n{flags_help(values)}\n\n"
            f"Fields, as --config.NAME=VALUE, and their defaults (jaxcnn/config.py says what they are):\n\n{fields}"
        )
        return 0
    config, experiment = load_config(argv, flag_values=values, unread=False)
    if values.workdir == "":
        raise UserError("--workdir is empty; leave it out for runs/<experiment>")
    workdir = workdir_lib.resolve(values.workdir or os.path.join("runs", experiment))
    if "\\" in os.fspath(workdir):
        raise UserError(
            f"workdir {workdir}: checkpoints cannot lie below a name with a backslash; pass another --workdir"
        )
    if not workdir_lib.check(workdir, experiment, config):
        check_unread(config)
    workdir_lib.check_excluded(workdir, config.data.exclude, _exclusion_digest(config))
    log = RunLog(workdir, tensorboard=config.tensorboard, start=start)
    summary = workdir_lib.read_summary(workdir)
    if summary is not None and not values.dry_run:
        log.say(f"{workdir} holds this run, finished:")
        closing_table(log.console, summary)
        return 0

    if config.init_from is not None and not workdir_lib.has_checkpoints(workdir):
        from jaxcnn.transfer.finding import find

        find(config.init_from)
    from jaxcnn.build import build  # imports JAX; whatever is wrong above was said in a tenth of the time
    from jaxcnn.parallel import set_up

    set_up(config.platform, compilation_cache=config.compilation_cache)
    if values.dry_run:
        from jaxcnn.preview import preview

        run, _ = build(config, progress=log.work, stand_in=True)
        preview(run, log.console, experiment=experiment, workdir=workdir)
        return 0
    with workdir_lib.claimed(workdir), contextlib.closing(log):
        workdir_lib.check(workdir, experiment, config)  # again, now that nobody else can write there
        saved = workdir_lib.saved_data(workdir)
        run, feed = build(
            config,
            progress=log.work,
            statistics=(saved["mean"], saved["std"]) if saved else None,
            kept_splits=workdir_lib.read_splits(workdir) if saved else None,
        )
        with contextlib.closing(feed):
            return _train(run, feed, experiment, workdir, log, start)


def _exclusion_digest(config: Config) -> str | None:
    if config.data.exclude is None:
        return None
    from jaxcnn.data.exclusion import read_exclusion

    return read_exclusion(config.data.exclude).digest


def _train(run: Any, feed: Any, experiment: str, workdir: Any, log: RunLog, start: float) -> int:
    import jax

    from jaxcnn import loop
    from jaxcnn.build import describe, versions
    from jaxcnn.checkpoint import Checkpoints
    from jaxcnn.media import Media

    config: Config = run.config
    num_params = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))
    pretrained = None if workdir_lib.has_checkpoints(workdir) else run.pretrained
    workdir_lib.write_config(
        workdir,
        experiment,
        config,
        run.data_facts(),
        versions(),
        pretrained=None if pretrained is None else pretrained.facts(),
    )
    workdir_lib.write_splits(workdir, run.source.record_numbers)
    log.say(describe(run, experiment, num_params))
    if pretrained is not None:
        log.console.print(pretrained.table())
    if run.finetuning.layers:
        log.console.print(run.finetuning.table(run.steps_per_epoch))
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        best_metric=loop.best_metric(run),
        asynchronous=config.checkpoint.asynchronous,
        report=complain,
    )
    media = Media(run, feed, log)
    set_up_seconds = time.perf_counter() - start
    try:
        result = loop.train(run, feed, log, checkpoints, begin=media.begin, end=media.end)
    finally:
        checkpoints.close()
    summary = {
        "experiment": experiment,
        "status": "finished",
        **result,
        "num_params": num_params,
        "seconds": {"setup": set_up_seconds, **result["seconds"]},
        "platform": run.parallel.devices[0].platform,
        "num_devices": run.parallel.num_devices,
        "num_processes": jax.process_count(),
        "seed": config.seed,
        "versions": versions(),
    }
    log.summary(summary)
    closing_table(log.console, summary)
    log.say(f"everything is in {workdir}")
    return 0


def show_help(text: str) -> None:
    """Prints it, also for a reader who leaves early."""
    PatientConsole(soft_wrap=True).print(text)


def flags_help(values: flags.FlagValues) -> str:
    """A line for each of a command's own flags."""
    names = [name for name in values if name not in ("flagfile", "undefok")]
    return "\n".join(f"  --{name}: {values[name].help} (default {values[name].default})" for name in names)


def parse_flags(values: flags.FlagValues, argv: list[str], *, takes_arguments: bool = True) -> list[str]:
    """Parses a command's own flags; returns the arguments beside them. UserError says what is wrong."""
    refuse_flagfile(argv)
    try:
        rest = values(argv)[1:]
    except flags.Error as error:
        raise UserError(one_line(error)) from None
    if rest and not takes_arguments:
        raise UserError(f"unexpected argument {rest[0]!r}; options are written --name=value")
    return rest


def run_command(command: Any, *, less_memory: str = TRAINING_MEMORY) -> NoReturn:
    """Runs `command(argv, start)` and leaves with the exit code that its outcome has, and one line on stderr.

    `less_memory` is what to do where it takes more than there is.
    """
    begin_anew()
    start = time.perf_counter()
    quiet_libraries()
    take_over()
    stopping.at_once()
    try:
        code = command(sys.argv, start)
    except Preempted as error:
        complain(error)
        exit_code(0)
        os._exit(error.exit_code)  # libraries that were being imported may crash in Python's own way out
    except (UserError, RunError) as error:
        complain(error)
        code = error.exit_code
    except OSError as error:  # a disk that is full, a folder that is gone
        complain(error)
        code = 1
    except Exception as error:
        if _is_out_of_memory(error):
            complain(f"out of memory ({one_line(error)[:120]}); {less_memory}")
        else:  # our own fault
            print(shown(traceback.format_exc()), file=sys.stderr, end="")
        code = 1
    sys.exit(exit_code(code))


def _is_out_of_memory(error: Exception) -> bool:
    """On the host, or as XLA says it. Files that are too large are RESOURCE_EXHAUSTED, too, to those who save them."""
    return isinstance(error, MemoryError) or (
        "RESOURCE_EXHAUSTED" in str(error) and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    )


def begin_anew() -> None:
    """Begins the process anew, once, with what Python and glibc read at a program's start alone.

    Names on disk are UTF-8, whatever the locale; what is printed stays in the terminal's encoding. glibc asks for pages
    of 2 MiB: a step on a CPU takes all its memory from the system anew, and in pages of 4 KiB that took up to 45 % of
    its time.
    """
    wanted = {}
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        wanted["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    is_utf8 = locale.getpreferredencoding(False).lower() in ("utf-8", "utf8")
    if not is_utf8 and os.environ.get("PYTHONUTF8") != "1":
        wanted |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": getattr(sys.stdout, "encoding", None) or "utf-8"}
    if wanted:
        os.environ.update(wanted)
        stopping.hold()
        if sys.stdout is not None:  # closed by who called us
            sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)


def quiet_libraries() -> None:
    """Only our own lines reach the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's C++ log
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the traceback of what it then raises
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    run_command(main)
