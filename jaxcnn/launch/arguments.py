"""A launch's own options, which come first, and the command behind them: `--nodes 2 train --config FILE`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.errors import UserError, nearest
from jaxcnn.launch.system import ROOT, one_line

NUMBER = "[1-9][0-9]{0,5}"
COUNT = "0|[1-9][0-9]{0,5}"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,200}"
FORMS = {NUMBER: "a number from 1", COUNT: "a number from 0", NAME: "a name of letters, digits, '.', '_' and '-'"}
COMMANDS = {"train": "jaxcnn.main", "sweep": "jaxcnn.sweep", "search": "jaxcnn.search"}
_OF_TRAINING = re.compile(r"--(config|config\..*|workdir|dry_run|distributed)(=.*)?", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """An option: `words` for the help, and what a whole value looks like; a flag has no value."""

    words: str
    default: str = ""
    pattern: str = NAME
    form: str = ""  # of a value, in words; none: FORMS has it
    is_flag: bool = False


DRY_RUN = Option("print what would be run, run nothing", is_flag=True)


@dataclass(frozen=True)
class Command:
    """What is launched, `python -m MODULE ARGUMENTS`."""

    name: str  # of COMMANDS
    arguments: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """What follows the interpreter."""
        return ["-m", COMMANDS[self.name], *self.arguments]

    def values_of(self, name: str) -> list[str]:
        """Every value that the arguments give an option: --NAME=VALUE or --NAME VALUE."""
        found = []
        for index, word in enumerate(self.arguments):
            option, equals, value = word.partition("=")
            if option in (f"--{name}", f"-{name}"):
                found.append(value if equals else "".join(self.arguments[index + 1 : index + 2]))
        return found

    @property
    def workdir(self) -> str | None:
        """None: the command's own choice."""
        return next(reversed(self.values_of("workdir")), None)

    @property
    def logs(self) -> Path:
        """Folder for what a launch leaves: launch/ in the run's folder, or in runs/ where there is none on disk."""
        folder = self.workdir
        return ROOT / (Path(folder).expanduser() if folder and "://" not in folder else Path("runs")) / "launch"


def parse(argv: list[str], options: dict[str, Option]) -> tuple[dict[str, str], list[str]]:
    """Values of the options at the beginning, by name with defaults, a flag's `yes`; and the words behind them.

    Raises UserError for a value of another form, or an option that is neither the launch's nor training's.
    """
    values = {name: option.default for name, option in options.items()}
    rest = list(argv)
    while rest and rest[0].startswith("--"):
        name, equals, value = rest[0][2:].partition("=")
        name = name.replace("_", "-")
        if name not in options:
            break
        rest.pop(0)
        if options[name].is_flag:
            if equals:
                raise UserError(f"--{name} takes no value")
            values[name] = "yes"
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
            value = rest.pop(0)
        values[name] = _checked(name, value, options[name])
    return values, rest


def _checked(name: str, value: str, option: Option) -> str:
    if not re.fullmatch(option.pattern, value):
        form = option.form or FORMS[option.pattern]
        raise UserError(f"--{name}={one_line(value)[:80]} is not {form}")
    return value


def command_of(words: list[str], options: dict[str, Option], *allowed: str) -> Command:
    """The command that the words behind the options are: `train` may be left out.

    Raises UserError where they are none, or name no experiment that is there.
    """
    if words and not words[0].startswith("-"):
        name, *arguments = words
    else:
        name, arguments = "train", words
        if words and not _OF_TRAINING.fullmatch(words[0]):
            own = [f"--{each}" for each in options]
            raise UserError(f"unknown option {one_line(words[0])[:80]}; {nearest(words[0].partition('=')[0], own)}")
    if name not in allowed:
        raise UserError(f"{one_line(name)[:80]} is nothing that is launched so; {nearest(name, allowed)}")
    if any("\0" in each or "\n" in each for each in arguments):
        raise UserError("an argument has an end of line or a NUL in it; take it out")
    if any(re.search("[\ud800-\udfff]", each) for each in arguments):
        raise UserError("an argument is no UTF-8; a script or a manifest could not hold it")
    command = Command(name, tuple(arguments))
    if command.workdir == "":
        raise UserError("--workdir is empty; leave it out for runs/<experiment>")
    if re.match("~[^/]", command.workdir or ""):
        raise UserError(f"--workdir={one_line(command.workdir)[:80]}: write the home folder out, or ~/")
    _check_experiment(command)
    return command


def _check_experiment(command: Command) -> None:
    """Raises UserError where a training names no experiment, or one that is not there."""
    files = command.values_of("config")
    if not files and command.name == "train":
        raise UserError("no experiment given; pass --config=experiments/NAME.py")
    for each in files:
        if not os.path.isfile(ROOT / each.partition(":")[0]):
            raise UserError(f"--config={one_line(each)[:120]}: there is no such file")


def help_of(options: dict[str, Option]) -> str:
    """A line for each option."""
    return "\n".join(
        f"  --{name}: {option.words}" + (f" (default {option.default})" if option.default else "")
        for name, option in options.items()
    )
