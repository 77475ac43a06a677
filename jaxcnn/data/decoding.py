"""Encoded images to uint8 [H, W, C], and to the size of the run.

Sets that were prepared hold JPEG or PNG; a user's own files may be of any usual type, told by content, not by name.
"""

import io
import math
from functools import cache
from typing import IO, Any

import numpy as np

from jaxcnn.data.records import ImageShape, one_line

# Named, because Pillow would also run Ghostscript on what holds PostScript, whatever its suffix.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")


def decode_image(encoded: bytes, num_channels: int) -> np.ndarray:
    """A JPEG or PNG as TensorFlow does: grey becomes RGB where the set declares it, EXIF orientation is ignored."""
    import cv2

    mode = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(num_channels, cv2.IMREAD_UNCHANGED)
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("neither JPEG nor PNG")
    if num_channels >= 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB if num_channels == 3 else cv2.COLOR_BGRA2RGBA)
    return image if image.ndim == 3 else image[:, :, None]


def fit_image(image: np.ndarray, image_shape: ImageShape) -> np.ndarray:
    """Resizes so that the shorter side fits, then crops the centre: [H, W, C] to image_shape."""
    if image.shape == image_shape:
        return image
    height, width, channels = image_shape
    scale = max(height / image.shape[0], width / image.shape[1])
    resized_height = max(height, round(image.shape[0] * scale))
    resized_width = max(width, round(image.shape[1] * scale))
    image = resize_image(image, resized_height, resized_width)
    top, left = (resized_height - height) // 2, (resized_width - width) // 2
    return image[top : top + height, left : left + width].reshape(height, width, channels)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] to [height, width, C]: bilinear, and antialiased where it shrinks, as Pillow's.

    Halved while that is not too small, then bilinear to a multiple of the size, and means of blocks. Nearer to Pillow's
    than OpenCV's area filter is, in half the time (docs/performance.md).
    """
    import cv2

    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    multiple = math.ceil(image.shape[1] / width) * width, math.ceil(image.shape[0] / height) * height
    image = cv2.resize(image, multiple, interpolation=cv2.INTER_LINEAR)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return image.reshape(height, width, -1)  # OpenCV drops the last axis where C = 1


def read_header(file: IO[bytes]) -> ImageShape:
    """The shape of what decode_any gives, from the file's first bytes. ValueError says what is wrong with it."""
    try:
        image = _open(file)
        if image is None:
            file.seek(0)
            height, width, channels = _by_opencv(file.read()).shape
            return height, width, min(channels, 3)
        width, height = image.size
        if _orientation(image) in (5, 6, 7, 8):
            height, width = width, height
        return height, width, 1 if _is_grey(image.mode) else 3
    except Exception as error:
        raise ValueError(one_line(error) or type(error).__name__) from error


def decode_any(encoded: bytes, num_channels: int) -> np.ndarray:
    """A file of any usual type to uint8 [H, W, 1 or 3], upright. ValueError says what is wrong with it.

    Of several frames or pages, the first. What is transparent lies on white. Colour profiles are ignored. 16 bits are
    rounded to 8; floats are 0..1. Plain JPEGs go through OpenCV, which decodes them as Pillow does and takes less time.
    """
    try:
        file = io.BytesIO(encoded)
        image = _open(file)
        pixels = None
        if image is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
            pixels = _decode_plain_jpeg(encoded, start_of_scan=file.tell(), grey=image.mode == "L")
        if pixels is None:
            pixels = np.asarray(_over_white(_upright(image, encoded)))
    except Exception as error:
        raise ValueError(one_line(error) or type(error).__name__) from error
    return with_channels(pixels if pixels.ndim == 3 else pixels[:, :, None], num_channels)


def from_pillow(image: Any, num_channels: int) -> np.ndarray:
    """Pillow's image as decode_any of its file, but that colours of 16 bits a channel, which Pillow cuts, stay cut."""
    try:
        image.load()
        pixels = np.asarray(_over_white(_upright(image, b"")))
    except Exception as error:
        raise ValueError(one_line(error) or type(error).__name__) from error
    return with_channels(pixels if pixels.ndim == 3 else pixels[:, :, None], num_channels)


def from_array(levels: np.ndarray, num_channels: int) -> np.ndarray:
    """[H, W] or [H, W, C] of uint8, uint16 or floats in 0..1, as decode_any. ValueError says what is wrong with it."""
    levels = levels if levels.ndim == 3 else levels[..., None]
    allowed = (1, 3, 4) if num_channels in (1, 3) else (num_channels,)
    if 0 in levels.shape or levels.shape[-1] not in allowed:
        shape = "x".join(map(str, levels.shape))
        first = levels.shape[0] in (1, 3, 4) and levels.shape[-1] > 4
        raise ValueError(f"an array of {shape} is no image{'; move its channels to the end' if first else ''}")
    pixels = _eight_bits(levels)
    if pixels.shape[-1] == 4 != num_channels:
        pixels = np.asarray(_over_white(_pillow().fromarray(pixels)))
    return with_channels(pixels, num_channels)


def with_channels(images: np.ndarray, num_channels: int) -> np.ndarray:
    """uint8 [..., 1 or 3] with 1 or 3 channels: grey is repeated; of colours it is the luma, with Pillow's rounding."""
    if images.shape[-1] == num_channels:
        return images
    if images.shape[-1] == 1:
        return np.repeat(images, num_channels, axis=-1)
    luma = images @ np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601, times 2^16
    return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]


@cache
def _pillow() -> Any:
    """Pillow, which takes a while to import, and which warns of damaged tags that nobody asked for."""
    import warnings

    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\b")
    return Image


def _open(file: IO[bytes]) -> Any:
    """Pillow's image, of which the header is read; none for a TIFF of a kind that Pillow does not know."""
    pillow = _pillow()
    try:
        return pillow.open(file, formats=FORMATS)
    except pillow.DecompressionBombError:
        limit = 2 * pillow.MAX_IMAGE_PIXELS
        raise ValueError(f"more than {limit:,} pixels, as in files made to fill the memory; make it smaller") from None
    except pillow.UnidentifiedImageError:
        file.seek(0)
        start = file.read(64)
    if start[:4] in (b"II*\0", b"MM\0*"):
        return None
    raise ValueError(_what_it_is(start))


def _what_it_is(start: bytes) -> str:
    if not start.strip(b"\0"):
        return "the file is empty" if not start else "the file begins with zeros"
    if start[4:8] == b"ftyp":
        kinds = {b"avi": "AVIF", b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIC", b"msf": "HEIC"}
        return f"{kinds.get(start[8:11], 'a video')}, which Pillow cannot read here; convert it to JPEG or PNG"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, not an image; download it again"
    return "no image of a known type"


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16")


def _orientation(image: Any) -> int:
    """EXIF's, 1 to 8; 1 is upright. TIFFs are turned by their decoders; a PNG is not read to its end for it."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged tags do not spoil the image
        return 1


def _decode_plain_jpeg(encoded: bytes, *, start_of_scan: int, grey: bool) -> np.ndarray | None:
    """[H, W] or [H, W, 3]; none where Pillow has to see it: truncated, or turned by tags that OpenCV does not read."""
    import cv2

    # OpenCV 4 fills what is missing with grey and says nothing.
    if encoded.find(b"\xff\xd9", start_of_scan) < 0 or encoded.find(b"tiff:Orientation", 0, start_of_scan) >= 0:
        return None
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    return image if image is None or grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _upright(image: Any, encoded: bytes) -> Any:
    """Pillow's image of 8 bits a channel."""
    pillow = _pillow()
    if image is None:
        return pillow.fromarray(_eight_bits(_by_opencv(encoded)).squeeze())
    orientation = _orientation(image)
    if image.mode in ("RGB", "RGBA") and ";16" in str(image.tile):  # of which Pillow keeps the upper 8 bits
        image.load()  # and says that it is truncated, which OpenCV does not
        image = pillow.fromarray(_eight_bits(_by_opencv(encoded)))
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        image = pillow.fromarray(_eight_bits(levels.astype(np.uint16) if image.format == "PPM" else levels))
    elif image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        image = pillow.fromarray(255 - np.asarray(image), "CMYK")  # Pillow takes every one for inverted, as Adobe does
    turns = pillow.Transpose
    method = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }.get(orientation)  # fmt: skip
    return image if method is None else image.transpose(method)


def _over_white(image: Any) -> Any:
    """L or RGB."""
    mode = "L" if _is_grey(image.mode) else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("RGBA")
    white = _pillow().new("RGBA", image.size, "white")
    return _pillow().alpha_composite(white, image).convert(mode)


def _by_opencv(encoded: bytes) -> np.ndarray:
    """[H, W, C] as stored, of any dtype."""
    import cv2

    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("neither Pillow nor OpenCV can read it")
    if image.ndim == 2:
        return image[:, :, None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    """uint8: of 16 bits, 0..65535 to 0..255; of floats, 0..1 to 0..255; both rounded."""
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype.kind == "u" and levels.dtype.itemsize == 2:
        return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if levels.dtype.kind == "f":
        if not (levels.min() >= 0 and levels.max() <= 1):  # nor NaN
            raise ValueError(f"floats from {levels.min():g} to {levels.max():g}, where 0 to 1 is meant; scale them")
        return np.round(levels * 255).astype(np.uint8)
    raise ValueError(f"{levels.dtype} levels have no agreed scale; save it with 8 or 16 bits")
