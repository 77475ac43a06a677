"""Decoding of images to uint8 [H, W, C], and resizing to the size of the run.

Sets that were prepared hold JPEG or PNG; a user's own files may be of any usual type, told by content, not by name.
Memory is bounded by MAX_BYTES and the size asked for, whatever a file says of itself.
"""

import contextlib
import io
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from typing import IO, Any, NamedTuple

import numpy as np

from jaxcnn.data.records import ImageShape
from jaxcnn.data.tiff import ORIENTATION, SIGNATURES, Layout, read_layout, read_tags
from jaxcnn.terminal import short_line

# Named, because Pillow would also run Ghostscript on what holds PostScript, whatever its suffix.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
FILE_LIMIT = 1 << 29  # bytes of an image file
MAX_PIXELS = 178_956_970  # Pillow's own limit
MAX_BYTES = 1 << 29  # of a decoded image; a photograph of 100 megapixels has 300 MB

_TOO_MANY = f"more than {MAX_PIXELS:,} pixels, as in files made to fill the memory; make it smaller"
_BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "LA": 2, "La": 2, "PA": 2, "I;16": 2, "I;16B": 2, "RGB": 3}  # by mode; else 4
_BYTES_OF_FORMATS = {"WEBP": 5, "JPEG2000": 9}  # a pixel, half of what their decoders hold meanwhile
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\b""")
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_STRIP = 1 << 20  # pixels that are converted at a time
_ELONGATED = 16  # times longer than the crop, beyond which only the middle of a picture is resized

# OpenCV's own limit, for the images of prepared sets; it reads it when it is imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))


def hold_back_threads() -> None:
    """Keeps OpenCV from threads of its own: they would wait for one another between ours."""
    with contextlib.suppress(ModuleNotFoundError):  # arrays that have the run's size need no OpenCV
        import cv2

        cv2.setNumThreads(1)


def decode_image(encoded: bytes, num_channels: int) -> np.ndarray:
    """A JPEG or PNG as TensorFlow does: grey becomes RGB where the set declares it, EXIF orientation is ignored."""
    image = _by_opencv(encoded, {1: "IMREAD_GRAYSCALE", 3: "IMREAD_COLOR_RGB"}.get(num_channels, "IMREAD_UNCHANGED"))
    if image is None:
        raise ValueError("neither JPEG nor PNG, or too large")
    if num_channels > 3:
        import cv2

        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    return image if image.ndim == 3 else image[:, :, None]


def fit_image(image: np.ndarray, image_shape: ImageShape, *, resized: int | None = None) -> np.ndarray:
    """Resizes so that the shorter side fits, then crops the centre: [H, W, C] to image_shape.

    `resized`: where the crop's shorter side, too, is to have so many pixels before, at least as many as after; None:
    just as many.
    """
    if image.shape == image_shape and resized is None:
        return image
    height, width, channels = image_shape
    scale = max(height / image.shape[0], width / image.shape[1]) * (resized or min(height, width)) / min(height, width)
    image = image[
        _middle(image.shape[0], _ELONGATED * height / scale), _middle(image.shape[1], _ELONGATED * width / scale)
    ]
    resized_height = max(height, round(image.shape[0] * scale))
    resized_width = max(width, round(image.shape[1] * scale))
    image = resize_image(image, resized_height, resized_width)
    top, left = (resized_height - height) // 2, (resized_width - width) // 2
    return image[top : top + height, left : left + width].reshape(height, width, channels)


def _middle(size: int, longest: float) -> slice:
    """Slice of a side: all of it, or the middle `longest` pixels."""
    left_out = max(0, math.floor((size - longest) / 2))
    return slice(left_out, size - left_out)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] to [height, width, C]: bilinear, and antialiased where it shrinks, as Pillow's.

    Halved while that is not too small, then bilinear to a multiple of the size, and means of blocks. Nearer to Pillow's
    than OpenCV's area filter is, in half the time (docs/performance.md).
    """
    import cv2

    def halved(image: np.ndarray, *, rows: int, columns: int) -> np.ndarray:
        size = image.shape[1] // columns, image.shape[0] // rows
        return cv2.resize(image[: size[1] * rows, : size[0] * columns], size, interpolation=cv2.INTER_AREA)

    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        image = halved(image, rows=2, columns=2)
    while image.shape[0] >= _ELONGATED * height:  # shorter than that, the multiple below stays small
        image = halved(image, rows=2, columns=1)
    while image.shape[1] >= _ELONGATED * width:
        image = halved(image, rows=1, columns=2)
    multiple = math.ceil(image.shape[1] / width) * width, math.ceil(image.shape[0] / height) * height
    image = cv2.resize(image, multiple, interpolation=cv2.INTER_LINEAR)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return image.reshape(height, width, -1)  # OpenCV drops the last axis where C = 1


def read_header(file: IO[bytes]) -> ImageShape:
    """The shape of what decode_any gives, from the file's first bytes. ValueError says what is wrong with it."""
    try:
        return open_image(file).shape
    except Exception as error:
        raise _said(error) from error


def decode_any(encoded: bytes, num_channels: int) -> np.ndarray:
    """A file of any usual type to uint8 [H, W, 1 or 3], upright. ValueError says what is wrong with it.

    Of several frames or pages, the first. What is transparent lies on white. Colour profiles are ignored. 16 bits are
    rounded to 8; floats are 0..1. Plain JPEGs go through OpenCV, which decodes them as Pillow does and takes less time.
    """
    try:
        file = io.BytesIO(encoded)
        opened = open_image(file)
        pixels = _decode_plain_jpeg(encoded, opened, start_of_scan=file.tell())
        if pixels is None and opened.layout is not None and opened.layout.by_opencv:
            pixels = _decode_deep(encoded, opened)
        elif pixels is None:
            pixels = _by_pillow(opened.image, opened.layout)
        pixels = _turned(pixels, opened.orientation)
        if pixels.shape != opened.shape:
            raise ValueError(f"its header says {opened.shape}, its pixels are {pixels.shape}")
    except Exception as error:
        raise _said(error) from error
    return with_channels(pixels, num_channels)


def from_pillow(image: Any, num_channels: int) -> np.ndarray:
    """Pillow's image as decode_any of its file, but that colours of 16 bits a channel, which Pillow cuts, stay cut."""
    try:
        layout = read_layout(image.tag_v2)._replace(by_opencv=False) if image.format == "TIFF" else None
        orientation = _orientation(image)  # before a PNG is read to its end: what stands there does not count
        pixels = _turned(_by_pillow(image, layout), orientation)
    except Exception as error:
        raise _said(error) from error
    return with_channels(pixels, num_channels)


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
    grey = np.empty((*images.shape[:-1], 1), np.uint8)
    for rows in _strips(len(images), images[:1].size // 3):
        luma = images[rows] @ np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601, times 2^16
        grey[rows] = ((luma + 0x8000) >> 16)[..., None]
    return grey


def _said(error: Exception) -> ValueError:
    return ValueError(short_line(error) or type(error).__name__)


# ---- opening


class OpenedImage(NamedTuple):
    """An image file of which the header is read."""

    image: Any  # Pillow's; none for a TIFF of a kind that it does not know
    layout: Layout | None  # of every TIFF, and of a PNG whose colours have 16 bits
    shape: ImageShape  # of its pixels, upright
    orientation: int  # 1 to 8, what the decoder leaves to be turned; 1: nothing


def open_image(file: IO[bytes]) -> OpenedImage:
    """Reads a header. All images are opened here: files of the listed formats alone, and none too large to decode.

    Whatever Pillow raises is raised, and ValueError for what is no image, or one that no decoder gets right.
    """
    pillow = _pillow()
    try:
        image = pillow.open(file, formats=FORMATS)
    except pillow.DecompressionBombError:
        raise ValueError(_TOO_MANY) from None
    except pillow.UnidentifiedImageError:
        file.seek(0)
        start = file.read(64)
        if not start.startswith(SIGNATURES):
            raise ValueError(_what_it_is(start)) from None
        image = None
    if image is None or image.format == "TIFF":
        opened = _opened_tiff(image, read_layout(read_tags(file) if image is None else image.tag_v2))
    else:
        opened = _opened(image)
    _check_size(opened)
    return opened


def _opened(image: Any) -> OpenedImage:
    orientation, (width, height), layout = _orientation(image), image.size, None
    if image.format == "PNG" and image.mode in ("RGB", "RGBA") and ";16" in str(image.tile):
        layout = Layout(height, width, samples=len(image.mode), extra=2, by_opencv=True)
    if orientation >= 5:
        width, height = height, width
    return OpenedImage(image, layout, (height, width, 1 if _is_grey(image.mode) else 3), orientation)


def _opened_tiff(image: Any, layout: Layout) -> OpenedImage:
    """A TIFF's header; both decoders turn it upright by its own tag."""
    if layout.by_opencv:
        channels = min(layout.samples, 3)
    elif image is not None:
        channels = 1 if _is_grey(image.mode) else 3
    else:
        raise ValueError(f"a TIFF of {layout.samples} samples of {layout.bits} bits that Pillow cannot read")
    return OpenedImage(image, layout, (layout.height, layout.width, channels), 1)


def _check_size(opened: OpenedImage) -> None:
    """Raises ValueError for an image that would fill the memory."""
    height, width, _ = opened.shape
    if height * width > MAX_PIXELS:
        raise ValueError(_TOO_MANY)
    if opened.layout is not None and opened.layout.by_opencv:
        num_bytes = height * width * opened.layout.bytes_a_pixel
    else:
        num_bytes = (
            height * width * _BYTES_OF_FORMATS.get(opened.image.format, _BYTES_A_PIXEL.get(opened.image.mode, 4))
        )
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"{width:,} x {height:,} pixels are {num_bytes >> 20:,} MiB decoded, of at most {MAX_BYTES >> 20}; "
            "make it smaller"
        )


@cache
def _pillow() -> Any:
    """Pillow, imported late because it takes a while; inside, its warnings of damaged tags are off."""
    import warnings

    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\b")
    return Image


@cache
def _opencv() -> Any:
    """OpenCV; inside, it does not print the errors that it raises."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


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
    """Orientation by EXIF, else XMP, 1 to 8; 1 is upright. Decoders turn TIFFs; a PNG is not read to its end."""
    if image.format == "TIFF" or not any(key in image.info for key in _METADATA):
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION)
        packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
        if orientation is None:  # Pillow looks into XMP, but knows one spelling
            match = _XMP_ORIENTATION.search(packet.encode() if isinstance(packet, str) else packet)
            orientation = int(match[1]) if match else 1
    except Exception:  # damaged tags do not spoil the image
        return 1
    return orientation if orientation in range(1, 9) else 1


# ---- decoding


def _by_opencv(encoded: bytes, flag: str) -> np.ndarray | None:
    """[H, W] or [H, W, C] as stored, of any dtype; a TIFF's are upright. None for what OpenCV cannot read."""
    cv2 = _opencv()
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), getattr(cv2, flag) | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None


def _decode_plain_jpeg(encoded: bytes, opened: OpenedImage, *, start_of_scan: int) -> np.ndarray | None:
    """[H, W, 1 or 3], not turned; none for other files, and where OpenCV is not certain: then Pillow has to see it."""
    image = opened.image
    if image is None or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    if encoded.find(b"\xff\xd9", start_of_scan) < 0:  # OpenCV 4 fills what is missing with grey and says nothing
        return None
    pixels = _by_opencv(encoded, "IMREAD_GRAYSCALE" if image.mode == "L" else "IMREAD_COLOR_RGB")
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return None
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _decode_deep(encoded: bytes, opened: OpenedImage) -> np.ndarray:
    """[H, W, 1 or 3] of a TIFF or PNG of more than 8 bits: OpenCV keeps them."""
    layout, hole = opened.layout, None
    assert layout is not None
    if opened.image is not None:
        opened.image.load()  # which says where it is truncated; OpenCV may not
        hole = opened.image.info.get("transparency")
        opened.image.close()
    levels = _by_opencv(encoded, "IMREAD_UNCHANGED")
    if levels is None:
        raise ValueError("OpenCV cannot read it")
    levels = levels if levels.ndim == 3 else levels[:, :, None]
    samples = levels.shape[2]
    if (levels.dtype.kind == "f") != layout.is_float or (not hole and samples != layout.samples):
        raise ValueError(f"OpenCV reads {samples} samples of {levels.dtype} where the header says otherwise")
    return _pixels_of_levels(levels, layout, hole if samples == 3 else None)


def _by_pillow(image: Any, layout: Layout | None = None) -> np.ndarray:
    """[H, W, 1 or 3], not turned unless it is a TIFF. Converted some rows at a time, which bounds the memory."""
    deep = ";16" in str(image.tile)
    with _unturned_by_xmp(image):
        image.load()
    hole = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)[:, :, None]
        if image.format == "PPM" and image.mode == "I":
            levels = levels.astype(np.uint16)
        layout = layout or Layout(image.height, image.width, is_float=image.mode == "F")
        return _pixels_of_levels(levels, layout, hole if isinstance(hole, int) else None)
    # Pillow takes the CMYK of every JPEG for inverted, as Adobe's is.
    inverted = image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info
    pixels = np.empty((image.height, image.width, 1 if _is_grey(image.mode) else 3), np.uint8)
    for rows in _strips(image.height, image.width):
        whole = rows == slice(0, image.height) and not deep
        strip = image if whole else image.crop((0, rows.start, image.width, rows.stop))
        if inverted:
            strip = _pillow().fromarray(255 - np.asarray(strip), "CMYK")
        if deep and isinstance(hole, tuple):
            strip.info["transparency"] = tuple(level >> 8 for level in hole)  # cut as the pixels are
        pixels[rows] = np.asarray(_over_white(strip)).reshape(pixels[rows].shape)
    return pixels


@contextlib.contextmanager
def _unturned_by_xmp(image: Any) -> Iterator[None]:
    """Pillow would turn a TIFF by it that has no tag of its own; OpenCV, and a header's size, would not."""
    packet = image.info.pop("xmp", None) if image.format == "TIFF" and ORIENTATION not in image.tag_v2 else None
    yield
    if packet is not None:
        image.info["xmp"] = packet


def _pixels_of_levels(levels: np.ndarray, layout: Layout, hole: int | tuple[int, ...] | None) -> np.ndarray:
    """[H, W, 1 or 3] over white, of levels [H, W, C] in OpenCV's order. `hole`: what is transparent, RGB or grey."""
    height, width, samples = levels.shape
    pixels = np.empty((height, width, min(samples, 3)), np.uint8)
    for rows in _strips(height, width):
        strip = levels[rows, :, 2::-1] if samples >= 3 else levels[rows]
        eight = _eight_bits(layout.highest - strip if layout.white_is_zero else strip, layout.highest)
        if hole is not None:
            eight[(strip == hole).all(axis=2)] = 255
        if samples == 4 and layout.extra in (1, 2):
            alpha = _eight_bits(levels[rows, :, 3:], layout.highest)
            if layout.extra == 1:
                eight = np.minimum(eight + (255 - alpha).astype(np.uint16), 255)
            else:
                eight = np.asarray(_over_white(_pillow().fromarray(np.concatenate([eight, alpha], axis=2))))
        pixels[rows] = eight
    return pixels


def _strips(height: int, width: int) -> Iterator[slice]:
    """Strips of rows of about a megapixel."""
    count = max(1, _STRIP // max(1, width))
    return (slice(top, min(top + count, height)) for top in range(0, height, count))


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C], upright."""
    if orientation == 1:
        return pixels
    import cv2

    turned = cv2.transpose(pixels) if orientation >= 5 else pixels
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    turned = turned if flip is None else cv2.flip(turned, flip)
    return turned.reshape(*turned.shape[:2], -1)  # OpenCV drops the last axis where C = 1


def _over_white(image: Any) -> Any:
    """Pillow's image over white: L or RGB."""
    mode = "L" if _is_grey(image.mode) else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = _pillow().new("RGBA", image.size, "white")
    return _pillow().alpha_composite(white, image).convert(mode)


def _eight_bits(levels: np.ndarray, highest: int = 65535) -> np.ndarray:
    """Levels as uint8: 16 bits from 0..highest, floats from 0..1; both rounded."""
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype.kind == "u" and levels.dtype.itemsize == 2:
        return ((levels.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)
    if levels.dtype.kind == "f":
        if not (levels.min() >= 0 and levels.max() <= 1):  # nor NaN
            raise ValueError(f"floats from {levels.min():g} to {levels.max():g}, where 0 to 1 is meant; scale them")
        return np.round(levels * 255).astype(np.uint8)
    raise ValueError(f"{levels.dtype} levels have no agreed scale; save it with 8 or 16 bits")
