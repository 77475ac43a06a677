"""Checks of plain data from a file against what its reader expects, so that nothing behind the reader checks again.

What is expected is written as the data would be: a type; a `Number`; `[item]` for a list; `(item, None)` for what may
be null; `{"name": item, "other?": item}` for fields that must and that may be there, `{str: item}` for all others.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_SHOWN = 60  # letters of a wrong value


@dataclass(frozen=True)
class Number:
    """An integer, or any number that is finite, in a range."""

    low: float = -sys.float_info.max  # which neither NaN, nor infinity, nor an endless integer is above
    high: float = sys.float_info.max
    integer: bool = False


def check(value: Any, expected: Any, where: str) -> None:
    """Raises ValueError, naming the place in `where`, unless the value is as expected."""
    match expected:
        case (item, None):
            if value is not None:
                check(value, item, where)
        case Number():
            if not _is_number(value, expected):
                raise ValueError(f"{where} is {_shown(value)}, not {_described(expected)}")
        case list():
            if not isinstance(value, list):
                raise ValueError(f"{where} is {_shown(value)}, not a list")
            for number, item in enumerate(value):
                check(item, expected[0], f"{where}[{number}]")
        case dict():
            if not isinstance(value, Mapping):
                raise ValueError(f"{where} is {_shown(value)}, not fields")
            named = {name.removesuffix("?"): item for name, item in expected.items() if name is not str}
            missing = [name for name in expected if name is not str and name in named and name not in value]
            if missing:
                raise ValueError(f"{where}.{missing[0]} is missing")
            for name, each in value.items():
                if name in named or str in expected:
                    check(each, named.get(name, expected.get(str)), f"{where}.{name}")
        case _:
            if not isinstance(value, expected):
                raise ValueError(f"{where} is {_shown(value)}, not {_words(expected)}")


def conforms(value: Any, expected: Any) -> bool:
    """Whether it is as expected."""
    try:
        check(value, expected, "")
    except ValueError:
        return False
    return True


def _is_number(value: Any, expected: Number) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if expected.integer else int | float):
        return False
    return bool(expected.low <= value <= expected.high)


def _described(expected: Number) -> str:
    words = "an integer" if expected.integer else "a number"
    lowest = f" of at least {expected.low:g}" if expected.low > Number.low else ""
    return words + lowest + (f" and at most {expected.high:g}" if expected.high < Number.high else "")


def _words(expected: Any) -> str:
    return {str: "text", bool: "true or false"}.get(expected, "of the right kind")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
