"""Contact sheets: rows of images with a name each, as one picture. Drawn with Pillow."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxcnn.data.records import Split, read_or_error
from jaxcnn.errors import RunError

_TILE = 96  # pixels: side of an image on a sheet, at most, or the next whole multiple of a tiny one
_GAP = 4
_TEXT = 14  # pixels: height of letters
_LONGEST_NAME = 28  # letters
_MOST_ROWS = 100
# Fonts with more letters than the one that comes with Pillow, where the system has them.
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")


@dataclass(frozen=True)
class Row:
    """Images, uint8 [H, W, 1 or 3], beside a name."""

    name: str
    images: Sequence[np.ndarray]


def png(picture: Image.Image) -> bytes:
    """The picture as a file."""
    target = io.BytesIO()
    picture.save(target, format="PNG", optimize=True)
    return target.getvalue()


def draw(rows: Sequence[Row], *, columns: Sequence[str] = ()) -> Image.Image:
    """The sheet; `columns` are words above the images.

    Tiny images are shown larger, by a whole factor and without smoothing, so that every pixel is seen.
    """
    font = _font()
    tiles = [[_tile(image) for image in row.images] for row in rows]
    side = max((max(tile.size) for row in tiles for tile in row), default=_TILE)
    names = [_short(row.name) for row in rows]
    margin = round(max((font.getlength(name) for name in names), default=0)) + 3 * _GAP
    top = _TEXT + 3 * _GAP if columns else _GAP
    num_columns = max([len(columns), *map(len, tiles)], default=0)
    sheet = Image.new("RGB", (margin + num_columns * (side + _GAP), top + len(rows) * (side + _GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, words in enumerate(columns):
        pen.text((margin + column * (side + _GAP), _GAP), words, fill="black", font=font)
    for number, (name, row) in enumerate(zip(names, tiles, strict=True)):
        y = top + number * (side + _GAP)
        pen.text((_GAP, y + (side - _TEXT) // 2), name, fill="black", font=font)
        for column, tile in enumerate(row):
            sheet.paste(tile, (margin + column * (side + _GAP), y))
    return sheet


def spread(count: int, most: int) -> np.ndarray:
    """At most so many of 0 … count - 1, int, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int))


def class_rows(split: Split, class_names: Sequence[str], *, num_images: int = 8) -> list[Row]:
    """Row of images per class, spread evenly over it; of more than a hundred classes, a hundred spread evenly.

    Images are as large as they are drawn, not as they are stored, so that few of those are held.
    """
    labels = np.asarray(split.records.labels())[split.indices]
    labels = labels if labels.ndim == 1 else labels.argmax(axis=1)
    rows = []
    for label in spread(len(class_names), _MOST_ROWS):
        members = split.indices[labels == label]
        members = members[spread(len(members), num_images)]
        examples = read_or_error(split.records, members)
        images = [_shrunk(example.pop("image")) for example in examples if not isinstance(example, RunError)]
        rows.append(Row(class_names[label], images))
    return rows


def _shrunk(image: np.ndarray) -> np.ndarray:
    return np.asarray(_tile(image)) if max(image.shape[:2]) > _TILE else image


def _tile(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3]).convert("RGB")
    longest = max(picture.size)
    if longest > _TILE:
        picture.thumbnail((_TILE, _TILE), Image.Resampling.BOX)
        return picture
    factor = -(-_TILE // longest)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, _TEXT)
        except OSError:
            continue
    return ImageFont.load_default(_TEXT)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
