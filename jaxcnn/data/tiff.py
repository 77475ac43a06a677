"""Layout of a TIFF's samples, and whether a decoder here gets them right. Decodes nothing.

Pillow is trusted with up to 8 bits a sample, OpenCV with deeper grey and RGB whose samples lie together; none is with
deep ones in separate planes, with signed levels, or with colours of other kinds.
"""

from collections.abc import Mapping
from typing import IO, Any, NamedTuple

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0")

# Tags.
_WIDTH, _HEIGHT, _BITS, _COLOURS, ORIENTATION, _SAMPLES, _PLANES, _EXTRA, _FORMAT = (
    256, 257, 258, 262, 274, 277, 284, 338, 339,
)  # fmt: skip
_SAMPLES_OF_COLOURS = {0: 1, 1: 1, 2: 3}  # grey from white to black, grey from black to white, RGB
_CMYK = 5
_DEPTHS = {1: (10, 12, 14, 16), 3: (32, 64)}  # of unsigned levels and of floats


class Layout(NamedTuple):
    """Layout of the pixels of a file's first image."""

    height: int  # upright where it is a TIFF's
    width: int
    samples: int = 1
    bits: int = 16  # a sample
    is_float: bool = False
    white_is_zero: bool = False
    extra: int = 0  # of a fourth sample beside RGB: 1 alpha by which the colours are multiplied, 2 alpha, 0 neither
    by_opencv: bool = False  # else by Pillow

    @property
    def highest(self) -> int:
        """The level of white, or of black where white is 0, as the decoder gives it: OpenCV shifts 12 bits up to 16."""
        if self.is_float:
            return 1
        return (2**self.bits - 1) << (16 - self.bits if self.by_opencv else 0)

    @property
    def bytes_a_pixel(self) -> int:
        """Bytes of a pixel as it is decoded."""
        return self.samples * (2 if self.bits <= 16 else self.bits // 8)


def read_tags(file: IO[bytes]) -> Mapping[int, Any]:
    """Tags of the first page of a TIFF, also of one that Pillow does not open."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file.seek(0)
    header = file.read(8)
    directory: Any = ImageFileDirectory_v2(header + file.read(8) if header[2] == 43 else header)
    file.seek(directory.next)
    directory.load(file)
    return directory


def read_layout(tags: Mapping[int, Any]) -> Layout:
    """Layout of a TIFF. Raises ValueError where no decoder here is right."""
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if tags.get(ORIENTATION) in (5, 6, 7, 8):
        width, height = height, width
    bits, sample_format = max(_several(tags.get(_BITS, 1))), max(_several(tags.get(_FORMAT, 1)))
    samples, colours = tags.get(_SAMPLES, 1), tags.get(_COLOURS, 0)
    extra = _several(tags.get(_EXTRA, 0))[0] if samples == 4 else 0
    if sample_format not in _DEPTHS or (sample_format == 1 and bits > 16):
        raise ValueError(f"{'' if sample_format == 1 else 'signed '}{bits}-bit levels have no agreed scale; {_ADVICE}")
    if bits > 8:
        together = samples == 1 or tags.get(_PLANES, 1) == 1
        known = bits in _DEPTHS[sample_format] and samples - (samples == 4) == _SAMPLES_OF_COLOURS.get(colours)
        if not together or not (known or colours == _CMYK):
            planes = "" if together else " in separate planes"
            raise ValueError(f"a TIFF of {samples} samples of {bits} bits{planes} is not read here; {_ADVICE}")
    by_opencv = bits > 8 and colours != _CMYK
    return Layout(height, width, samples, bits, sample_format == 3, colours == 0, extra, by_opencv)


_ADVICE = "save it as a PNG"


def _several(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) and value else (value,)
