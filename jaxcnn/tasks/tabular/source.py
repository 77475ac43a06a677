"""A table as a run has it: which columns are learned from, what they hold, and the splits of its rows.

What stands in a text column is known of train's rows alone. Nothing is scaled here: the task measures train for that.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config import Config, DataConfig, TableConfig
from jaxcnn.config.choices import TABLES
from jaxcnn.data.chosen import choose_splits
from jaxcnn.data.folder import find_path
from jaxcnn.data.records import ArraySpec, Example, Source, Split
from jaxcnn.data.records import Progress as Counter
from jaxcnn.data.splits import Progress
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import user_path
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.tasks.tabular.table import Cells, Table, is_text, missing_in, number_of, open_csv

MOST_AUTO_CLASSES = 20  # whole numbers of so many values are classes, unless the config says
MOST_VALUES = 100  # of a text column


@dataclass(frozen=True)
class Column:
    """A column that is learned from: numbers, or text of which these values are known."""

    name: str
    values: tuple[str, ...] | None = None  # None: numbers

    def number(self, cell: str) -> float:
        """A cell's: itself, NaN where nothing stands; of text its place in `values`, -1 where it is none of them."""
        if self.values is None:
            return number_of(cell)
        return self.values.index(cell.strip()) if cell.strip() in self.values else -1

    def numbers(self, cells: Cells) -> np.ndarray:
        """Of a whole column that `Table` has read, float64 [n]."""
        if self.values is None:
            return cells
        places = {value: place for place, value in enumerate(self.values)}
        return np.array([places.get(cell, -1) for cell in cells], float)


@dataclass(frozen=True)
class Layout:
    """What a table's columns are to a run: plain data, which config.json keeps."""

    columns: tuple[Column, ...]
    target: str
    class_names: tuple[str, ...]  # none: the target is a number

    @property
    def width(self) -> int:
        """Inputs of the model: one a column of numbers, one a value of text."""
        return sum(1 if column.values is None else len(column.values) for column in self.columns)

    def facts(self) -> dict[str, Any]:
        """As plain JSON data; the class names stand beside it."""
        return {
            "target": self.target,
            "columns": [
                {"name": each.name, "values": None if each.values is None else list(each.values)}
                for each in self.columns
            ],
        }

    @staticmethod
    def of(data: dict[str, Any]) -> "Layout":
        """From `data` of config.json."""
        columns = [
            Column(each["name"], None if each["values"] is None else tuple(each["values"]))
            for each in data["table"]["columns"]
        ]
        return Layout(tuple(columns), data["table"]["target"], tuple(data["class_names"]))

    def read(self, path: str, *, fill: bool) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | ValueError]]:
        """Each row of a CSV file: its line, and `features` float32 [columns], or what is wrong with it.

        Columns that the run does not know are passed over. `fill`: an empty cell is as train's mean, no fault.
        """
        try:
            file = user_path(path)
        except ValueError as error:
            raise UserError(f"{path[:200]}: {error}; give the path of a CSV file") from None
        header, rows = open_csv(file)
        for column in self.columns:
            if column.name not in header:
                raise UserError(f"{path} has no column {column.name!r}; {nearest(column.name, header)}")
        places = [header.index(column.name) for column in self.columns]
        for line, cells in rows:
            try:
                if len(cells) != len(header):
                    raise ValueError(f"it has {len(cells)} cells, and the header {len(header)}")
                numbers = [
                    self._number(column, cells[place], fill) for column, place in zip(self.columns, places, strict=True)
                ]
                yield {"line": line}, {"features": np.array(numbers, np.float32)}
            except ValueError as error:
                yield {"line": line}, error

    @staticmethod
    def _number(column: Column, cell: str, fill: bool) -> float:
        try:
            number = column.number(cell)
        except ValueError as error:
            raise ValueError(f"column {column.name!r}: {error}") from None
        if number != number and not fill:
            raise ValueError(f"column {column.name!r} is empty")
        return number


@dataclass(frozen=True)
class TableRecords:
    """Rows of a table, in memory."""

    name: str
    features: np.ndarray  # float32 [n, columns]; NaN where a number is missing
    targets: np.ndarray  # int32 [n], classes; or float32 [n], numbers
    lines: np.ndarray  # int [n], what a row is called
    is_file: bool = True
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, record: int) -> Example:
        return {"features": self.features[record], "target": self.targets[record]}

    @property
    def example(self) -> dict[str, ArraySpec]:
        """A row's numbers, and what is learned of it."""
        return {"features": ArraySpec(self.features.shape[1:], np.float32), "target": ArraySpec((), self.targets.dtype)}

    @property
    def class_by_class(self) -> bool:
        """Rows may stand sorted by class, as those of iris do."""
        return self.targets.dtype.kind == "i"

    def labels(self, progress: Counter | None = None) -> np.ndarray:
        """Classes, int32 [n]; where targets are numbers, all of one."""
        return self.targets if self.class_by_class else np.zeros(len(self), np.int32)

    def identifier(self, record: int) -> str:
        """`line:7` of a file, `row:7` of others."""
        return f"{'line' if self.is_file else 'row'}:{self.lines[record]}"

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The rows in the order asked."""
        return (self[int(record)] for record in records)


@dataclass(frozen=True, kw_only=True)
class TableSource(Source):
    """A table and its splits."""

    layout: Layout

    def facts(self) -> dict[str, Any]:
        """With what the columns are."""
        return {**super().facts(), "table": self.layout.facts()}

    def words(self) -> str:
        """`13 columns (20 inputs), 3 classes`."""
        count, width = len(self.layout.columns), self.layout.width
        inputs = "" if width == count else f" ({width} inputs)"
        names = self.class_names
        return f"{count} columns{inputs}, " + (f"{len(names)} classes" if names else f"target {self.layout.target}")


def open_source(
    config: Config, *, progress: Progress | None = None, kept: dict[str, np.ndarray] | None = None
) -> TableSource:
    """Reads a table, and splits its rows as sets of images are; those of a number without regard to it.

    Args:
      config: validated.
      progress: told what is left out or filled in.
      kept: the splits of a run that exists, as Source.record_numbers had them: they are its splits for good.

    Raises:
      UserError: there is no such table, or nothing can be learned of it as it is.
    """
    data, tell = config.data, progress or (lambda *_: None)
    table = open_table(data)
    digest = table.digest()
    table, target = _chosen_columns(data.name, table, config.table)
    table = _without_gaps(data.name, table, target, config.table, tell)
    targets, class_names = _targets(data.name, table, target, config.table.kind)
    if not class_names:
        data = replace(data, stratify=False)
        _check_no_classes(config)
    names = [name for name in table.columns if name != target]
    if not config.table.encode:
        _check_text(data.name, table, names)
    rows = TableRecords(data.name, np.empty((len(targets), 0)), targets, table.lines, table.is_file)
    stored = {"train": Split(rows, np.arange(len(rows)))}
    fingerprint = fingerprint_of("table", data.name.partition(":")[0], digest)
    chosen = choose_splits(data, stored, fingerprint, kept=kept, progress=progress)
    splits = chosen.splits
    columns = _columns(data.name, table, names, splits["train"].indices)
    features = np.stack([each.numbers(table.columns[each.name]) for each in columns], axis=1).astype(np.float32)
    rows = replace(rows, features=features)
    counts = {
        name: np.bincount(targets[split.indices], minlength=len(class_names)).tolist() if class_names else []
        for name, split in splits.items()
    }
    return TableSource(
        name=config.data.name,
        class_names=class_names,
        image_shape=None,
        splits={name: Split(rows, split.indices) for name, split in splits.items()},
        fingerprint=fingerprint,
        class_counts={name: dict(zip(class_names, each, strict=True)) for name, each in counts.items()}
        if class_names
        else None,
        record_numbers=chosen.record_numbers,
        num_excluded=chosen.num_excluded,
        exclusion_digest=chosen.exclusion_digest,
        layout=Layout(columns, target, class_names),
    )


def open_table(data: DataConfig) -> Table:
    """The table that data.name names. Raises UserError."""
    kind, colon, rest = data.name.partition(":")
    choice = TABLES.get(kind)
    if choice is None or bool(colon) != (choice.takes != ""):
        of_files = [name for name, each in TABLES.items() if each.takes]
        if not colon and data.name.lower().endswith(tuple(f".{name}" for name in of_files)):
            raise UserError(f"data.name={data.name!r} says not of what kind it is: did you mean csv:{data.name}?")
        valid = [f"{name}:PATH" if each.takes else name for name, each in TABLES.items()]
        name = f"{kind}:PATH" if colon else data.name
        raise UserError(f"data.name={data.name!r} is no known table: {nearest(name, valid)}")
    where = find_path(data.name, kind, rest, data.dir) if choice.takes else rest
    load: Callable[..., Table] = choice.load()
    return load(data.split_seed, where)


# ---- columns


def _chosen_columns(name: str, table: Table, options: TableConfig) -> tuple[Table, str]:
    """(the table without the columns that are left out, the target's name)."""
    target = options.target if options.target is not None else table.last
    for field, column in (("target", target), *(("drop", each) for each in options.drop)):
        if column not in table.columns:
            raise UserError(f"table.{field}={column!r}: {name} has no such column; {nearest(column, table.columns)}")
    if target in options.drop:
        raise UserError(f"table.drop names {target!r}, which is the target; set table.target to another column")
    columns = {column: cells for column, cells in table.columns.items() if column not in options.drop}
    if len(columns) < 2:
        raise UserError(f"{name} has no column beside the target {target!r} to learn from")
    return replace(table, columns=columns), target


def _without_gaps(name: str, table: Table, target: str, options: TableConfig, tell: Progress) -> Table:
    """As table.missing has it: refused, rows left out, or left to be filled with train's means."""
    gaps = {column: missing_in(cells) for column, cells in table.columns.items()}
    empty = [column for column, gap in gaps.items() if gap.any()]
    if not empty:
        return table
    gap = np.any(list(gaps.values()), axis=0)
    cells = f"{sum(int(each.sum()) for each in gaps.values()):,} empty cells in {', '.join(map(repr, empty[:5]))}"
    if options.missing == "drop":
        if gap.all():
            raise UserError(f"{name}: every row has empty cells ({cells}); set table.missing=mean, or table.drop")
        tell(f"{name}: {gap.sum():,} of {len(gap):,} rows are left out: {cells} (table.missing=drop)", 0, 0)
        return table.rows(~gap)
    if options.missing == "error" or target in empty:
        column = target if target in empty and options.missing == "mean" else empty[0]
        where = table.where(int(np.flatnonzero(gaps[column])[0]))
        ways = "drop to leave such rows out" if column == target else "mean to fill in train's, or drop"
        raise UserError(f"{name}, {where}, column {column!r} is empty ({cells}); set table.missing={ways}")
    tell(f"{name}: {cells} of {len(gap):,} rows are filled with the means of train (table.missing=mean)", 0, 0)
    return table


def _check_text(name: str, table: Table, names: Sequence[str]) -> None:
    """Raises UserError where a column is text."""
    text = [column for column in names if is_text(table.columns[column])]
    if text:
        where = ", ".join(f"{column!r} ({_first_text(table, column)})" for column in text[:5])
        raise UserError(
            f"{name} has text in {where}{', …' if len(text) > 5 else ''}: mend the cells, set table.encode=true for an "
            f'input for each value, or leave it out: table.drop="{tuple(text)}"'
        )


def _columns(name: str, table: Table, names: Sequence[str], train: np.ndarray) -> tuple[Column, ...]:
    """What each column holds, text as far as it stands in train's rows."""
    columns = []
    for column in names:
        if not is_text(table.columns[column]):
            columns.append(Column(column))
            continue
        values = sorted({cell for cell in table.columns[column][train] if cell})
        if not values or len(values) > MOST_VALUES:
            raise UserError(
                f"{name}: the text column {column!r} has {len(values):,} values in train, of 1 to {MOST_VALUES}; leave "
                f"it out: table.drop=\"('{column}',)\""
            )
        columns.append(Column(column, tuple(values)))
    return tuple(columns)


def _first_text(table: Table, column: str) -> str:
    """The first cell that is no number: `'abc', line 7`."""
    for row, cell in enumerate(table.columns[column]):
        try:
            number_of(cell)
        except ValueError:
            return f"{cell[:40]!r}, {table.where(row)}"
    raise AssertionError(column)


# ---- the target


def _targets(name: str, table: Table, target: str, kind: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(classes int32 [n], their names), or (numbers float32 [n], ())."""
    cells = table.columns[target]
    values, which = np.unique(cells.astype(str) if is_text(cells) else cells, return_inverse=True)
    if len(values) < 2:
        shown = f"{values[0]}" if is_text(cells) else f"{values[0]:g}"
        raise UserError(
            f"{name}: the target {target!r} is {shown} in all {len(cells):,} rows: there is nothing to learn"
        )
    if kind == "auto":
        whole = not is_text(cells) and len(values) <= MOST_AUTO_CLASSES and (values == np.floor(values)).all()
        kind = "classification" if is_text(cells) or whole else "regression"
    if kind == "regression":
        if is_text(cells):
            raise UserError(
                f"{name}: the target {target!r} is text ({_first_text(table, target)}), and table.kind=regression "
                "learns numbers; set it to classification, or name another table.target"
            )
        return cells.astype(np.float32), ()
    if len(values) > max(MOST_AUTO_CLASSES, len(cells) // 2):
        raise UserError(
            f"{name}: the target {target!r} has {len(values):,} values in {len(cells):,} rows, which are no classes; "
            "set table.kind=regression, or name another table.target"
        )
    names = values.tolist() if is_text(cells) else [f"{int(v)}" if v == int(v) else f"{v:.17g}" for v in values]
    return which.reshape(-1).astype(np.int32), tuple(map(str, names))


def _check_no_classes(config: Config) -> None:
    """Raises UserError where an option is for classes, and the target is a number."""
    for field, value, default in (
        ("data.sampling", config.data.sampling, "uniform"),
        ("data.examples_per_class", config.data.examples_per_class, None),
        ("loss.class_weights", config.loss.class_weights, "none"),
        ("loss.class_weight_values", config.loss.class_weight_values, ()),
    ):
        if value != default:
            raise UserError(f"{field}={value} is for classes, and the target is a number; leave it at {default!r}")
