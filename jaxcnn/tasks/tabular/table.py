"""Tables as people have them, in memory: CSV files, scikit-learn's own, and drawn ones.

Each source of tables is a function here, named by an entry of config/choices.py:TABLES. What is wrong with a file is
said in one line, with the column and the line of the file.
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.files import read_text
from jaxcnn.terminal import short_line

LARGEST_FILE = 256 << 20  # bytes: its cells take some ten times that in memory
LARGEST_NUMBER = 1e18  # of either sign; its square still has a float32
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))  # cells that hold nothing, in any case

Cells = np.ndarray  # float64 [n], NaN where nothing stands; or text, object [n], "" where nothing stands


@dataclass(frozen=True)
class Table:
    """Columns of numbers and of text, all of one length."""

    columns: dict[str, Cells]
    lines: np.ndarray  # int [n]: of the file, from 1 on; or rows of what no file holds, from 0 on
    is_file: bool = True

    @property
    def last(self) -> str:
        """The last column's name."""
        return list(self.columns)[-1]

    def where(self, row: int) -> str:
        """A row in words."""
        return f"line {self.lines[row]:,}" if self.is_file else f"row {self.lines[row]:,}"

    def rows(self, kept: np.ndarray) -> "Table":
        """Those that are `kept`, bool [n]."""
        return Table({name: cells[kept] for name, cells in self.columns.items()}, self.lines[kept], self.is_file)

    def digest(self) -> str:
        """Of all cells."""
        digest = hashlib.sha256()
        for name, cells in self.columns.items():
            content = "\0".join(cells) if is_text(cells) else cells.astype("<f8").tobytes()
            digest.update(name.encode() + b"\0")
            digest.update(content.encode() if isinstance(content, str) else content)
        return digest.hexdigest()


def is_text(cells: Cells) -> bool:
    """Whether a column is text."""
    return cells.dtype == object


def missing_in(cells: Cells) -> np.ndarray:
    """Where nothing stands, bool [n]."""
    return cells == "" if is_text(cells) else np.isnan(cells)


def number_of(cell: str) -> float:
    """A cell as a number, NaN where nothing stands. ValueError where it is none, or too large for float32."""
    if cell.strip().lower() in MISSING:
        return math.nan
    if "_" in cell:  # which Python's own numbers may have
        raise ValueError(f"{cell!r} is no number")
    try:
        number = float(cell)
    except ValueError:
        raise ValueError(f"{cell[:40]!r} is no number") from None
    if not abs(number) <= LARGEST_NUMBER:
        raise ValueError(f"{cell[:40]!r} is not finite, or beyond {LARGEST_NUMBER:g}")
    return number


# ---- CSV


def read_csv(seed: int, file: Path) -> Table:
    """A CSV file: UTF-8, commas, the first line names the columns. Raises UserError."""
    header, rows = open_csv(file)
    lines, cells = [], []
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{file}, line {line:,}, has {len(row)} cells, and the header {len(header)}; mend it")
        lines.append(line)
        cells.append(row)
    if not lines:
        raise UserError(f"{file} has a header and no rows")
    columns = {name: _column(file, name, [row[place] for row in cells], lines) for place, name in enumerate(header)}
    return Table(columns, np.array(lines))


def open_csv(file: str | Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """(the names of the columns, rows with the line that each ends in; empty lines left out). Raises UserError."""
    try:
        text = read_text(file, limit=LARGEST_FILE)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or short_line(error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text in UTF-8; save it again as CSV, UTF-8") from None
    except ValueError as error:
        raise UserError(f"{file} is too large for a table ({short_line(error)}); leave rows or columns out") from None
    csv.field_size_limit(LARGEST_FILE)  # a text is longer than Python's 128 KiB; for the whole process
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if any(cell.strip() for cell in row) or row == [""]:  # "" of one column is a cell, not an empty line
                    yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{file}, line {reader.line_num:,}, is no CSV: {short_line(error)}") from None

    following = rows()
    _, header = next(following, (0, []))
    header = [name.strip() for name in header]
    _check_header(file, header)
    return header, following


def _check_header(file: str | Path, header: list[str]) -> None:
    if not header:
        raise UserError(f"{file} is empty; a table begins with a line that names its columns")
    if all(_is_number(name) for name in header):
        raise UserError(f"{file} begins with numbers ({', '.join(header[:3])}); its first line must name the columns")
    if len(header) == 1 and (other := next((letter for letter in ";\t|" if letter in header[0]), None)):
        raise UserError(f"{file} has its cells between {other!r}; save it with commas")
    twice = next((name for place, name in enumerate(header) if name in header[:place]), None)
    if twice is not None:
        raise UserError(f"{file} has two columns {twice!r}; give each a name of its own")


def _is_number(cell: str) -> bool:
    try:
        return not math.isnan(number_of(cell))
    except ValueError:
        return False


def _column(file: Path, name: str, cells: list[str], lines: Sequence[int]) -> Cells:
    """Numbers where all cells are, else text. UserError where a number is not finite."""
    try:
        return np.array([number_of(cell) for cell in cells])
    except ValueError as error:
        if "no number" in str(error):
            stripped = [cell.strip() for cell in cells]
            return np.array(["" if cell.lower() in MISSING else cell for cell in stripped], object)
    for line, cell in zip(lines, cells, strict=True):
        try:
            number_of(cell)
        except ValueError as error:
            raise UserError(f"{file}, line {line:,}, column {name!r}: {error}") from None
    raise AssertionError


# ---- scikit-learn's


def _bundled(load: str, seed: int, where: str) -> Table:
    from sklearn import datasets  # takes a second

    loaded = getattr(datasets, load)()
    target = loaded.target.astype(float)
    if "target_names" in loaded:
        target = np.array([str(loaded.target_names[number]) for number in loaded.target], object)
    return _of_arrays(list(loaded.feature_names), loaded.data, target)


iris, wine, breast_cancer, diabetes = (
    partial(_bundled, f"load_{name}") for name in ("iris", "wine", "breast_cancer", "diabetes")
)


def make_classification(seed: int, where: str) -> Table:
    """1,000 examples of 3 classes, 20 columns of which 10 say something (Guyon 2003)."""
    from sklearn import datasets

    features, target = datasets.make_classification(1000, 20, n_informative=10, n_classes=3, random_state=seed)
    names = np.array([f"class {number}" for number in target], object)
    return _of_arrays([f"x{number}" for number in range(20)], features, names)


def make_regression(seed: int, where: str) -> Table:
    """1,000 examples, 20 columns of which 10 say something, linear, with noise of standard deviation 10."""
    from sklearn import datasets

    features, target = datasets.make_regression(1000, 20, n_informative=10, noise=10.0, random_state=seed)
    return _of_arrays([f"x{number}" for number in range(20)], features, target)


def _of_arrays(names: Sequence[str], features: np.ndarray, target: Cells) -> Table:
    columns: dict[str, Cells] = {name: features[:, place].astype(float) for place, name in enumerate(names)}
    return Table({**columns, "target": target}, np.arange(len(target)), is_file=False)
