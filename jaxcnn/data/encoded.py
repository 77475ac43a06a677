"""Headers of stored image files, and whether a file is whole, before its pixels are decoded.

Decoders may be forgiving: OpenCV 4 answers a JPEG of which half is missing with an image that is half grey.
"""

import io
import zlib
from typing import NamedTuple

from jaxcnn.data.decoding import open_image
from jaxcnn.terminal import short_line

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_JPEG_COLOURS = {1: "grey", 3: "RGB", 4: "CMYK"}
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a header with the number of components
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_PILLOW_COLOURS = {
    "L": "grey",
    "P": "palette",
    "LA": "grey with alpha",
    "RGBA": "RGB with alpha",
    "1": "black and white",
}


class Header(NamedTuple):
    """Colours of a file ("grey", "RGB", "CMYK", …; empty where unknown), and why it is not whole, if so."""

    colours: str
    damage: str | None


def inspect(encoded: bytes) -> Header:
    """Header of a file: JPEG and PNG by their structure, in microseconds; others by Pillow's decoding, which is strict.

    Of a TIFF that only OpenCV decodes, its decoding alone tells.
    """
    if encoded.startswith(b"\xff\xd8"):
        return _inspect_jpeg(encoded)
    if encoded.startswith(_PNG):
        return _inspect_png(encoded)
    colours = ""
    try:
        image, layout, shape, _ = open_image(io.BytesIO(encoded))
        if layout is not None and layout.by_opencv:
            return Header(f"{'grey' if shape[2] == 1 else 'RGB'} of {layout.bits} bits", None)
        colours = _PILLOW_COLOURS.get(image.mode, image.mode)
        image.load()
    except Exception as error:
        return Header(colours, short_line(error) or type(error).__name__)
    return Header(colours, None)


def _inspect_jpeg(encoded: bytes) -> Header:
    """An end-of-image marker must follow the first scan; one in the header may be that of an EXIF thumbnail."""
    colours = ""
    position = 2
    while position + 4 <= len(encoded):
        if encoded[position] != 0xFF:
            return Header(colours, "a segment of the JPEG does not begin with a marker")
        marker = encoded[position + 1]
        if marker == 0xDA:  # the first scan
            whole = encoded.find(b"\xff\xd9", position) >= 0
            return Header(colours, None if whole else "the JPEG ends before its image does")
        if marker in _JPEG_FRAMES and position + 9 < len(encoded):
            colours = _JPEG_COLOURS.get(encoded[position + 9], "")
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return Header(colours, "the JPEG ends before its image begins")


def _inspect_png(encoded: bytes) -> Header:
    colours = ""
    position = len(_PNG)
    while position + 12 <= len(encoded):
        end = position + 12 + int.from_bytes(encoded[position : position + 4], "big")
        if end > len(encoded):
            break
        if zlib.crc32(encoded[position + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end], "big"):
            return Header(colours, "a checksum of the PNG is wrong")
        match encoded[position + 4 : position + 8]:
            case b"IHDR":
                depth, kind = encoded[position + 16 : position + 18].ljust(2, b"\0")
                colours = _PNG_COLOURS.get(kind, "") + (" of 16 bits" if depth == 16 else "")
            case b"IEND":
                return Header(colours, None)
        position = end
    return Header(colours, "the PNG ends before its image does")
