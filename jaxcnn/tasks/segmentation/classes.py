"""Classes of a set of masks: their names, the values that stand for them, the colours in which they are drawn.

A mask's value is a level, an index of a palette, or, where the classes have colours, red * 65536 + green * 256 + blue.
"""

import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config import SegmentationConfig
from jaxcnn.data.decoding import open_image
from jaxcnn.errors import UserError
from jaxcnn.files import read_text
from jaxcnn.plain_data import check as check_plain
from jaxcnn.tasks.segmentation.losses import VOID
from jaxcnn.terminal import short_line

MOST_CLASSES = 255  # a class and void fit into a byte
VOID_NAMES = ("void", "ignore", "unlabeled", "unlabelled")  # in classes.txt: pixels that count nowhere
_LISTED = "classes.txt"
_OF_VALUES, _OF_COLOURS = ("1", "L", "P", "I", "I;16"), ("LA", "RGB", "RGBA")  # Pillow's modes
_GOLDEN = 0.618034  # of a turn between the hues of two classes, so that no two of few are alike


@dataclass(frozen=True)
class Classes:
    """What the values of masks mean."""

    names: tuple[str, ...]
    values: tuple[int, ...]  # in a mask, of each class
    void: tuple[int, ...]  # values of pixels that count nowhere
    colours: tuple[tuple[int, int, int], ...]  # red, green, blue, of each class
    coloured: bool = False  # values are colours

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Every value, ascending, and the class that it stands for."""
        values = np.array([*self.values, *self.void], np.int64)
        numbers = np.array([*range(len(self.values)), *[VOID] * len(self.void)], np.uint8)
        order = np.argsort(values, kind="stable")
        return values[order], numbers[order]

    def unknown(self, values: Sequence[int] | np.ndarray) -> list[int]:
        """Those that stand for nothing."""
        return np.setdiff1d(values, self._sorted[0]).tolist()

    def numbers(self, mask: np.ndarray) -> np.ndarray:
        """Classes uint8 [H, W] of a mask's values [H, W], VOID where nothing counts. ValueError for other values."""
        values, numbers = self._sorted
        place = np.searchsorted(values, mask).clip(max=len(values) - 1)
        wrong = values[place] != mask
        if wrong.any():
            raise ValueError(f"a pixel is {self.shown(int(mask[wrong][0]))}, which is no class's")
        return numbers[place]

    def shown(self, value: int) -> str:
        """A value as people write it."""
        return shown_value(value, coloured=self.coloured)

    def to_plain(self) -> dict[str, Any]:
        """For config.json."""
        return {
            "names": list(self.names),
            "values": list(self.values),
            "void": list(self.void),
            "colours": [list(each) for each in self.colours],
            "coloured": self.coloured,
        }

    @staticmethod
    def from_plain(plain: Any) -> "Classes":
        """The inverse. Raises UserError where it is none."""
        schema = {"names": [str], "values": [int], "void": [int], "colours": [[int]], "coloured": bool}
        try:
            check_plain(plain, schema, "it")
            if not len(plain["names"]) == len(plain["values"]) == len(plain["colours"]) <= MOST_CLASSES:
                raise ValueError("classes, values and colours are not as many")
            colours = tuple((int(r), int(g), int(b)) for r, g, b in plain["colours"])
            if not all(0 <= level <= 255 for each in colours for level in each):
                raise ValueError("a colour is not of levels 0 to 255")
        except ValueError as error:
            raise UserError(f"the run's config.json is damaged ({short_line(error)}); train it again") from None
        return Classes(
            tuple(plain["names"]), tuple(plain["values"]), tuple(plain["void"]), colours, plain["coloured"]
        )  # fmt: skip


def shown_value(value: int, *, coloured: bool) -> str:
    """A value as people write it: 3, or the colour 255 0 0."""
    return f"the colour {value >> 16} {value >> 8 & 255} {value & 255}" if coloured else str(value)


def default_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Black for the first, which is mostly the background; then hues far apart, light and dark by turns."""
    colours = [(0, 0, 0)]
    for place in range(1, count):
        hue, light = (0.58 + place * _GOLDEN) % 1, (0.55, 0.4, 0.7)[place % 3]
        red, green, blue = (round(255 * each) for each in colorsys.hls_to_rgb(hue, light, 0.75))
        colours.append((red, green, blue))
    return tuple(colours[:count])


# ---- found


def classes_of(
    name: str, options: SegmentationConfig, root: Path | None, found: Mapping[int, int], *, coloured: bool
) -> Classes:
    """The classes of a set: as the config names them, else its classes.txt, else the values of train's masks.

    Args:
      name: of the set, for messages.
      options: of the config.
      root: the folder that may have a classes.txt; none: there is none.
      found: in train's masks, value -> pixels.
      coloured: masks are of colours.

    Raises UserError where nothing says what values mean.
    """
    listed = root / _LISTED if root is not None and (root / _LISTED).is_file() else None
    if options.classes:
        if coloured:
            raise UserError(f"segmentation.classes names values 0, 1, …, and {name} has colours; {_advice(found)}")
        names = tuple(map(str, options.classes))
        return _checked(name, names, range(len(names)), (options.void,), default_colours(len(names)))
    if listed is not None:
        return _listed(name, listed, options, coloured=coloured)
    if coloured:
        raise UserError(f"{name} has masks of colours, and nothing says what they mean; {_advice(found)}")
    values = sorted(found.keys() - {options.void})
    if found.keys() == {0, 255}:  # as most write two classes
        return _checked(name, ("background", "foreground"), (0, 255), (), default_colours(2))
    return _checked(name, tuple(map(str, values)), values, (options.void,), default_colours(len(values)))


def _advice(found: Mapping[int, int]) -> str:
    first = [shown_value(value, coloured=True).removeprefix("the colour ") for value in list(found)[:3]]
    return f"write a {_LISTED} beside images, a line a class, as: road {first[0]}; its colours begin with {first}"


def _checked(
    name: str,
    names: tuple[str, ...],
    values: Sequence[int],
    void: tuple[int, ...],
    colours: Any,
    coloured: bool = False,
) -> Classes:
    if len(names) < 2:
        few = f"only one class, {names[0]!r}" if names else "no class"
        raise UserError(f"{name}: its masks have {few}: there is nothing to tell apart")
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"{name}: its masks have {len(names):,} classes; at most {MOST_CLASSES} fit; are they of instances, or "
            "smoothed?"
        )
    if len(set(names)) < len(names) or len(set(values)) < len(values):
        raise UserError(f"{name}: two classes have one name or one value; name each once")
    return Classes(names, tuple(values), tuple(each for each in void if each not in values), colours, coloured)


def _listed(name: str, file: Path, options: SegmentationConfig, *, coloured: bool) -> Classes:
    """Classes of a list: a line each, its name and perhaps its colour, before or behind it; the first has value 0."""
    try:
        lines = read_text(file, limit=1 << 20).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({short_line(error)}); save it in UTF-8") from None
    names: list[str] = []
    colours: list[tuple[int, int, int] | None] = []
    values: list[int] = []
    void: list[int] = []
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").replace("\t", " ").split()
        if not words or words[0].startswith("#"):
            continue
        label, colour = _name_and_colour(words)
        if not label:
            raise UserError(f"{file}, line {number}: {line[:80]!r} has no name; write as: road 128 64 128")
        if coloured and colour is None:
            raise UserError(f"{file}, line {number}: {label!r} has no colour, and the masks are of colours")
        value = colour[0] << 16 | colour[1] << 8 | colour[2] if coloured and colour else len(values) + len(void)
        if label.lower() in VOID_NAMES:
            void.append(value)
            continue
        names.append(label)
        values.append(value)
        colours.append(colour)
    default = default_colours(len(names))
    drawn = [each or other for each, other in zip(colours, default, strict=True)]
    void += [] if coloured else [options.void]
    return _checked(name, tuple(names), values, tuple(void), tuple(drawn), coloured)


def _name_and_colour(words: list[str]) -> tuple[str, tuple[int, int, int] | None]:
    for levels, rest in ((words[-3:], words[:-3]), (words[:3], words[3:])):
        if len(levels) == 3 and all(each.isdecimal() and int(each) <= 255 for each in levels):
            red, green, blue = map(int, levels)
            return " ".join(rest), (red, green, blue)
    return " ".join(words), None


# ---- masks as files


def decode_mask(encoded: bytes, *, coloured: bool) -> np.ndarray:
    """Values int32 [H, W] of a mask's file. ValueError says what is wrong with it.

    `coloured`: values are colours, as of a palette's entries too; else levels or a palette's indices.
    """
    image = _open(encoded)
    if coloured:
        return _codes(image)
    if image.mode not in _OF_COLOURS:
        return np.asarray(image).astype(np.int32)
    codes = _codes(image)
    if has_colours(codes):
        raise ValueError("it has colours where the other masks have values")
    return codes & 255


def look_at_mask(encoded: bytes) -> tuple[np.ndarray, bool]:
    """(values as decode_mask has them where they are no colours; whether they are: colours that are no greys)."""
    image = _open(encoded)
    if image.mode not in _OF_COLOURS:
        return np.asarray(image).astype(np.int32), False
    codes = _codes(image)
    return (codes, True) if has_colours(codes) else (codes & 255, False)


def has_colours(codes: np.ndarray) -> bool:
    """Whether red * 65536 + green * 256 + blue is no grey anywhere."""
    return bool(((codes >> 16 != codes & 255) | (codes >> 8 & 255 != codes & 255)).any())


def _open(encoded: bytes) -> Any:
    opened = open_image(io.BytesIO(encoded))
    image = opened.image
    if (
        image is None
        or image.mode not in (*_OF_VALUES, *_OF_COLOURS)
        or (image.mode in _OF_COLOURS and ";16" in str(image.tile))
    ):
        raise ValueError("it is no picture of 8 bits with a value or a colour a class; save it as such a PNG")
    if image.format in ("JPEG", "WEBP", "AVIF", "JPEG2000"):
        raise ValueError(f"{image.format} may change values; save it as PNG")
    image.load()
    return image


def _codes(image: Any) -> np.ndarray:
    levels = np.asarray(image.convert("RGB"), np.int32)
    return levels[..., 0] << 16 | levels[..., 1] << 8 | levels[..., 2]
