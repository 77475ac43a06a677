"""A command line to a config: the experiment's file, its overrides, and one line for whatever is wrong with them.

ml_collections does the parsing; what is here mends its answers to typos, `none` and errors in the experiment's file.
"""

import contextlib
import copy
import dataclasses
import itertools
import os
import re
import runpy
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

from jaxcnn.config import schema
from jaxcnn.config.checks import type_name, validate
from jaxcnn.config.plain import types_of
from jaxcnn.config.schema import Config
from jaxcnn.errors import UserError, nearest
from jaxcnn.terminal import one_line

_PARSERS: dict[type, flags.ArgumentParser] = {
    bool: flags.BooleanParser(), int: flags.IntegerParser(), float: flags.FloatParser(), str: flags.ArgumentParser(),
    tuple: TupleParser(),
}  # fmt: skip


def load_config(argv: list[str], *, flag_values: flags.FlagValues, unread: bool = True) -> tuple[Config, str]:
    """Parses a command line with `--config FILE[:ARG]` and `--config.a.b=v`, and whatever flags `flag_values` defines.

    Args:
      argv: the command line, the program's name first.
      flag_values: the command's other flags; parsed too.
      unread: whether an option that nothing would read is wrong too, as config.validate has it.

    Returns:
      The validated config and the experiment's name (`cifar10`, or `cifar10-resnet18` for `cifar10.py:resnet18`).

    Raises:
      UserError: anything is wrong with the command, the file, a name, a type or a value.
    """
    refuse_flagfile(argv)
    argv, nones = _take_nones(argv)
    config_flags.DEFINE_config_file("config", None, "experiment file, FILE[:ARG]", flag_values, sys_argv=argv)
    path = next((a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)), None)
    for before, after in itertools.pairwise(argv):
        path = after if before in ("--config", "-config") else path
    if path is None:
        raise UserError("no experiment given; pass --config experiments/digits.py")
    _check_file(path)
    sys.modules.pop("config_config", None)  # ml_collections would load a second file into the first one's module
    with _in_one_line(path):
        rest = flag_values(argv)
        config = flag_values.config
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; options are written --name=value")
    if not isinstance(config, Config):
        raise UserError(f"{path}: get_config() must return a jaxcnn.config.Config, not {type(config).__name__}")
    _set_nones(config, nones)
    validate(config, unread=unread)
    return config, experiment_name(path)


def override(config: Config, words: list[str]) -> Config:
    """A copy of a config with `--config.a.b=v` laid over it, as `load_config` does; not validated. Raises UserError."""
    words, nones = _take_nones(["", *words])
    values = flags.FlagValues()
    config_flags.DEFINE_config_dataclass("config", copy.deepcopy(config), flag_values=values, sys_argv=words)
    with _in_one_line("config"):
        values(words)
    changed: Config = values.config
    _set_nones(changed, nones)
    return changed


def take_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """(what else is on a command line, its `--config.a.b=v`). Raises UserError for a field that there is not."""
    kept, nones = _take_nones(argv)
    of_config = [word for word in kept if re.match(r"--?(no)?config\.", word)]
    return [word for word in kept if word not in of_config], of_config + [f"--config.{name}=none" for name in nones]


def call_file(path: str, function: str) -> Any:
    """What a function of a Python file returns, `FILE` or `FILE:ARG`. Raises UserError for whatever is wrong there."""
    _check_file(path)
    file, _, argument = path.partition(":")
    with _in_one_line(path, function):
        return runpy.run_path(file)[function](*([argument] if argument else []))


@contextlib.contextmanager
def _in_one_line(path: str, function: str = "get_config") -> Iterator[None]:
    """Whatever parsing, or the code of the file at `path`, raises is a UserError."""
    try:
        yield
    except UserError:
        raise
    except flags.IllegalFlagValueError as error:
        raise UserError(_describe_illegal(str(error))) from None
    except AttributeError as error:
        raise UserError(f"{path}: {_describe_attribute(error)}") from None
    except flags.Error as error:
        raise UserError(one_line(error)) from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever the experiment's own code raises
        if isinstance(error, KeyError) and error.args == (function,):
            raise UserError(f"{path}: the file defines no {function}()") from None
        raise UserError(f"{path}: {type(error).__name__}: {_own_words(one_line(error)[-300:])}") from None


def _set_nones(config: Config, names: list[str]) -> None:
    for name in names:
        parent, leaf = _resolve(config, name)
        setattr(parent, leaf, None)


def experiment_name(path: str) -> str:
    """`experiments/cifar10.py:resnet18` -> `cifar10-resnet18`."""
    file, _, argument = path.partition(":")
    return Path(file).stem + (f"-{argument}" if argument else "")


def refuse_flagfile(argv: list[str]) -> None:
    """Raises UserError for absl's own option, which reads options from any file."""
    for word in itertools.takewhile(lambda word: word != "--", argv):
        if re.match(r"--?(flagfile|undefok)\b", word):
            raise UserError(f"{word.partition('=')[0]} is not taken; write the options out")


def declared_type(path: str) -> Any:
    """The declared type of a dotted path. Raises UserError naming the nearest field."""
    schema: Any = Config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(["config", *parts[:depth]])
        if not dataclasses.is_dataclass(schema):
            raise UserError(f"--config.{path}: {where} is a plain value, it has no field {part!r}")
        hints = types_of(schema)
        if part not in hints:
            raise UserError(f"--config.{path}: {where} has no field {part!r}; {nearest(part, hints)}")
        schema = hints[part]
    if dataclasses.is_dataclass(schema):
        fields = ", ".join(types_of(schema))
        raise UserError(f"--config.{path}: config.{path} is a group; set one of its fields: {fields}")
    return schema


def parse_value(path: str, text: str) -> Any:
    """What `--config.PATH=TEXT` sets the field at `path` to; only its type is checked. Raises UserError."""
    hint = declared_type(path)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not type(None))
    try:
        return _PARSERS[typing.get_origin(kind) or kind].parse(text)
    except (flags.Error, ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{path}={text[:80]} must be {type_name(hint)}") from None


def split_values(text: str) -> list[str]:
    """Several values of a field as they are written, cut at the commas that stand outside of brackets."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _resolve(config: Config, path: str) -> tuple[Any, str]:
    *groups, leaf = path.split(".")
    node: Any = config
    for group in groups:
        node = getattr(node, group)
    return node, leaf


def _take_nones(argv: list[str]) -> tuple[list[str], list[str]]:
    """Checks the path of every override, and takes out `--config.x=none`, which ml_collections cannot parse."""
    kept: list[str] = []
    nones: list[str] = []
    index = 0
    while index < len(argv):
        argument = argv[index]
        index += 1
        match = re.match(r"--?(?:no)?config\.([^=]*)(?:=(.*))?$", argument, re.DOTALL)
        if argument == "--" or match is None:
            kept.append(argument)
            continue
        hint = declared_type(match[1])
        nullable = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
        value = match[2]
        if value is None and bool not in (hint, *typing.get_args(hint)):
            if index == len(argv) or argv[index].startswith("--"):
                raise UserError(f"{argument} has no value; write {argument}={type_name(hint).split()[-1]}")
            value, index = argv[index], index + 1
            argument = f"{argument}={value}"
        nones = [name for name in nones if name != match[1]]  # the last word counts
        if nullable and value is not None and value.lower() == "none":
            nones.append(match[1])
        else:
            kept.append(argument)
    return kept, nones


def _check_file(path: str) -> None:
    file = Path(path.partition(":")[0])
    if not os.path.isfile(file):  # which, unlike Path's, answers any name
        folder = file.parent if os.path.isdir(file.parent) else Path("experiments")
        files = [str(folder / each.name) for each in folder.glob("*.py")] if folder.is_dir() else []
        raise UserError(
            f"experiment file {str(file)!r} does not exist; "
            + (nearest(str(file), files) if files else "run from the project's root, where experiments/ lies")
        )


def _describe_illegal(message: str) -> str:
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    if not match:
        if not message.startswith("flag --config="):
            return message
        # the experiment's own error, behind a traceback
        return (
            f"{message.split(': ')[0].removeprefix('flag --config=')}: {_own_words(message.strip().splitlines()[-1])}"
        )
    return f"--config.{match[1]}={match[2]}: must be {type_name(declared_type(match[1]))}"


def _describe_attribute(error: AttributeError) -> str:
    if isinstance(error.obj, types.ModuleType) and error.name == "get_config":
        return "the experiment defines no get_config()"
    return _own_words(str(error))


def _own_words(message: str) -> str:
    """Python's words for an unknown field of a config, in ours; other messages as they are."""
    match = re.search(r"'(\w+)' object has no attribute '(\w+)'", message) or re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message
    )
    group = getattr(schema, match[1], None) if match else None
    if match and dataclasses.is_dataclass(group):
        names = (each.name for each in dataclasses.fields(group))
        return f"{match[1]} has no field {match[2]!r}; {nearest(match[2], names)}"
    return message
