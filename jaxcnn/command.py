"""What every command shares: its help, its flags, where it writes, and the exit code of whatever ends it."""

import os
import re
import sys
import time
import traceback
from typing import Any, NoReturn

from absl import flags

from jaxcnn.config.command_line import refuse_flagfile
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.files import check_writable
from jaxcnn.machine import begin_anew, quiet_libraries
from jaxcnn.run import stopping
from jaxcnn.terminal import PatientConsole, complain, complain_at_length, exit_code, one_line, take_over

HELP_FLAGS = {"--help", "-help", "-h", "--helpfull"}


def check_outputs(values: flags.FlagValues, *names: str, folder: bool = False, overwrite: bool = True) -> None:
    """Raises UserError where a file, or `folder`, that a flag names cannot be written, or is another flag's too.

    Called before long work. Unless `overwrite`, what is there already is refused, too.
    """
    seen: dict[str, str] = {}
    for name in names:
        path = values[name].value
        if path is None or path == "-":
            continue
        try:
            check_writable(path, folder=folder)
        except OSError as error:
            raise UserError(f"--{name}={path} cannot be written: {error.strerror}; choose another place") from None
        place = os.path.realpath(path)
        if not overwrite and os.path.isfile(place):
            raise UserError(f"--{name}={path} exists; choose another name, or --force to overwrite it")
        if place in seen and (os.path.isfile(place) or not os.path.exists(place)):
            raise UserError(f"--{seen[place]} and --{name} would both write {path}; give each a file of its own")
        seen[place] = name


def check_step(step: str) -> None:
    """Raises UserError for a --step that can be none."""
    if step not in ("best", "last") and not re.fullmatch("[0-9]{1,18}", step):
        raise UserError(f"--step={step[:40]} is neither best, last nor the number of a step")


TRAINING_MEMORY = "lower batch_size, raise optimizer.accumulate, or set model.remat=true where the model has blocks"


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
        if is_out_of_memory(error):
            complain(f"out of memory ({one_line(error)[:120]}); {less_memory}")
        else:  # our own fault
            complain_at_length(traceback.format_exc())
        code = 1
    sys.exit(exit_code(code))


def is_out_of_memory(error: Exception) -> bool:
    """On the host, or as XLA says it. Files that are too large are RESOURCE_EXHAUSTED, too, to those who save them."""
    return isinstance(error, MemoryError) or (
        "RESOURCE_EXHAUSTED" in str(error) and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    )
