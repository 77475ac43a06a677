"""Writes image files of every kind that users have, with the pixels that must come out, and files that are damaged."""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps

from tests.fake_tfds import draw_image


class Nasty(NamedTuple):
    encoded: bytes
    pixels: np.ndarray  # uint8 [H, W, 1 or 3], what decoding must give
    tolerance: int = 0  # levels


def photo(height: int = 30, width: int = 42) -> np.ndarray:
    """uint8 [height, width, 3]: a part of a photograph that comes with scikit-learn."""
    from sklearn.datasets import load_sample_image

    return cv2.resize(load_sample_image("flower.jpg")[100:400, 150:570], (width, height), interpolation=cv2.INTER_AREA)


def encode(image: Image.Image, format_name: str, *more: Image.Image, **options: Any) -> bytes:
    """The bytes of a file; `more` are further frames or pages."""
    file = io.BytesIO()
    frames = {"save_all": True, "append_images": [each.copy() for each in more]} if more else {}
    image.copy().save(file, format_name, **frames, **options)  # a copy: saving leaves settings behind in the image
    return file.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of pixels stored under an EXIF orientation (CIPA DC-008, figure of tag 274)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def nasty_images() -> dict[str, Nasty]:
    """By kind. References come from the pixels that were written, or for lossy kinds from Pillow's own decoding."""
    colours = photo()
    rgb = Image.fromarray(colours)
    grey = rgb.convert("L")
    levels = np.asarray(grey)[:, :, None]
    ramp = np.linspace(0, 255, colours.shape[1]).astype(np.uint8)[None, :].repeat(len(colours), axis=0)
    share = ramp[:, :, None] / 255.0
    over_white = np.round(share * colours + (1 - share) * 255).astype(np.uint8)
    grey_over_white = np.round(share * levels + (1 - share) * 255).astype(np.uint8)
    deep = (np.linspace(0, 65535, colours.size).reshape(colours.shape)).astype(np.uint16)
    deep_alpha = np.dstack([deep, ramp.astype(np.uint16) * 257])
    floats = (deep / 65535).astype(np.float32)
    rounded = np.round(deep / 257.0).astype(np.uint8)
    palette = rgb.quantize(17)
    looked_up = np.asarray(palette.convert("RGB"))
    holes = palette.copy()
    holes_pixels = np.where(np.asarray(holes)[:, :, None] == 3, 255, looked_up).astype(np.uint8)
    black_white = rgb.convert("1")
    bits = np.asarray(black_white).astype(np.uint8)[:, :, None] * np.uint8(255)
    cmyk = rgb.convert("CMYK")
    inks = np.asarray(cmyk).astype(float)
    printed = np.round((255 - inks[:, :, :3]) * (255 - inks[:, :, 3:]) / 255).astype(np.uint8)
    jpeg, grey_jpeg = encode(rgb, "JPEG", quality=95), encode(grey, "JPEG", quality=95)

    def pillow(encoded: bytes) -> np.ndarray:
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def by_opencv(suffix: str, pixels: np.ndarray) -> bytes:
        order = [2, 1, 0, 3][: pixels.shape[2]]
        plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1] if suffix == ".tiff" else []  # OpenCV 4 would round floats
        return cv2.imencode(suffix, pixels[:, :, order], plain)[1].tobytes()

    # Pillow writes CMYK as Adobe does, inverted and marked so; inverted once more and without the mark it is plain.
    plain_cmyk = encode(Image.fromarray(255 - np.asarray(cmyk), "CMYK"), "JPEG", quality=100, subsampling=0)
    mark = plain_cmyk.index(b"\xff\xee")
    plain_cmyk = plain_cmyk[:mark] + plain_cmyk[mark + 16 :]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    second = ImageOps.mirror(rgb)
    mpo = encode(rgb, "MPO", second, quality=95)
    avif = encode(rgb, "AVIF", quality=90)
    jpeg_2000 = encode(rgb, "JPEG2000", irreversible=False)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    images = {
        "JPEG": Nasty(jpeg, pillow(jpeg)),
        "JPEG, grey": Nasty(grey_jpeg, pillow(grey_jpeg)),
        "JPEG, progressive": Nasty(prog := encode(rgb, "JPEG", progressive=True), pillow(prog)),
        "JPEG, CMYK as Adobe inverts it": Nasty(encode(cmyk, "JPEG", quality=100, subsampling=0), printed, 6),
        "JPEG, CMYK not inverted": Nasty(plain_cmyk, printed, 6),
        "JPEG turned by XMP": Nasty(encode(rgb, "JPEG", quality=95, xmp=xmp), turned(pillow(jpeg), 6)),
        "JPEG with a thumbnail": Nasty(_with_thumbnail(jpeg, grey_jpeg), pillow(jpeg)),
        "JPEG with bytes after its end": Nasty(jpeg + b"\0\1\2" * 99, pillow(jpeg)),
        "MPO of two": Nasty(mpo, pillow(mpo)),
        "PNG": Nasty(encode(rgb, "PNG"), colours),
        "PNG, grey": Nasty(encode(grey, "PNG"), levels),
        "PNG, palette": Nasty(encode(palette, "PNG"), looked_up),
        "PNG, palette with a transparent colour": Nasty(encode(holes, "PNG", transparency=3), holes_pixels),
        "PNG, palette with shares of transparency": Nasty(
            encode(palette, "PNG", transparency=bytes([128] * 256)), np.round(looked_up * (128 / 255) + 127), 1
        ),
        "PNG, RGBA": Nasty(encode(Image.fromarray(np.dstack([colours, ramp])), "PNG"), over_white, 1),
        "PNG, LA": Nasty(encode(Image.fromarray(np.dstack([levels, ramp]), "LA"), "PNG"), grey_over_white, 1),
        "PNG, grey with a transparent level": Nasty(
            encode(grey, "PNG", transparency=int(levels[3, 3, 0])), np.where(levels == levels[3, 3, 0], 255, levels)
        ),
        "PNG, RGB with a transparent colour": Nasty(
            encode(rgb, "PNG", transparency=tuple(map(int, colours[3, 3]))),
            np.where((colours == colours[3, 3]).all(axis=2, keepdims=True), 255, colours),
        ),
        "PNG, 1 bit": Nasty(encode(black_white, "PNG"), bits),
        "PNG, 16 bits grey": Nasty(encode(Image.fromarray(deep[:, :, 0]), "PNG"), rounded[:, :, :1]),
        "PNG, 16 bits RGB": Nasty(by_opencv(".png", deep), rounded),
        "PNG, 16 bits RGBA": Nasty(
            by_opencv(".png", deep_alpha), np.round(share * (deep / 257) + (1 - share) * 255), 1
        ),
        "PNG with a colour profile": Nasty(encode(rgb, "PNG", icc_profile=profile), colours),
        "PNG turned by EXIF": Nasty(encode(rgb, "PNG", exif=with_orientation(8)), turned(colours, 8)),
        "GIF": Nasty(encode(palette, "GIF"), looked_up),
        "GIF, moving": Nasty(encode(palette, "GIF", ImageOps.mirror(palette)), looked_up),
        "BMP": Nasty(encode(rgb, "BMP"), colours),
        "BMP, palette": Nasty(encode(palette, "BMP"), looked_up),
        "TIFF": Nasty(encode(rgb, "TIFF", compression="tiff_lzw"), colours),
        "TIFF of pages": Nasty(encode(rgb, "TIFF", second), colours),
        "TIFF turned": Nasty(encode(rgb, "TIFF", tiffinfo={274: 6}), turned(colours, 6)),
        "TIFF, CMYK": Nasty(encode(cmyk, "TIFF"), printed, 1),
        "TIFF, 1 bit": Nasty(encode(black_white, "TIFF", compression="group4"), bits),
        "TIFF, 16 bits grey": Nasty(encode(Image.fromarray(deep[:, :, 0]), "TIFF"), rounded[:, :, :1]),
        "TIFF, 16 bits grey, big-endian": Nasty(
            encode(Image.frombytes("I;16B", (42, 30), deep[:, :, 0].astype(">u2").tobytes()), "TIFF"),
            rounded[:, :, :1],
        ),
        "TIFF, 16 bits RGB": Nasty(by_opencv(".tiff", deep), rounded),
        "TIFF, floats": Nasty(encode(Image.fromarray(floats[:, :, 0]), "TIFF"), rounded[:, :, :1]),
        "TIFF, floats RGB": Nasty(by_opencv(".tiff", floats), rounded),
        "WebP, lossless": Nasty(encode(rgb, "WEBP", lossless=True), colours),
        "WebP, moving": Nasty(encode(rgb, "WEBP", second, lossless=True), colours),
        "WebP turned by EXIF": Nasty(encode(rgb, "WEBP", lossless=True, exif=with_orientation(5)), turned(colours, 5)),
        "AVIF": Nasty(avif, pillow(avif)),
        "JPEG 2000": Nasty(jpeg_2000, colours),
        "PPM": Nasty(encode(rgb, "PPM"), colours),
        "PGM, 16 bits": Nasty(b"P5 42 30 65535\n" + deep[:, :, 0].astype(">u2").tobytes(), rounded[:, :, :1]),
    }  # fmt: skip
    for orientation in range(1, 9):
        exif = with_orientation(orientation)
        images[f"JPEG, orientation {orientation}"] = Nasty(
            encode(rgb, "JPEG", quality=95, exif=exif), turned(pillow(jpeg), orientation)
        )
    return images


def damaged_images() -> dict[str, tuple[bytes, str, bool]]:
    """By fault: the file, what must be said of it, and whether its header already tells."""
    rgb = Image.fromarray(photo())
    jpeg, png = encode(rgb, "JPEG"), encode(rgb, "PNG")
    deep = cv2.imencode(".png", photo().astype(np.uint16) * 257)[1].tobytes()
    floats = Image.fromarray(np.full((9, 9), 3.5, np.float32))
    return {
        "JPEG cut in its scan": (jpeg[: len(jpeg) * 2 // 3], "truncated", False),
        "JPEG without its end": (jpeg[:-2], "truncated", False),
        "JPEG cut, with a thumbnail": (_with_thumbnail(jpeg, jpeg)[:-200], "truncated", False),
        "JPEG with a tail of zeros": (jpeg[: len(jpeg) * 3 // 4] + bytes(len(jpeg) // 4), "truncated", False),
        "JPEG cut in its header": (jpeg[:100], "Truncated", True),
        "PNG cut": (png[: len(png) // 2], "truncated", False),
        "PNG of 16 bits cut": (deep[: len(deep) // 2], "truncated", False),
        "PNG with a flipped bit": (png[:200] + bytes([png[200] ^ 1]) + png[201:], "unrecognized|broken", False),
        "GIF cut": (encode(rgb.quantize(16), "GIF")[:200], "truncated", False),
        "floats beyond 1": (encode(floats, "TIFF"), "floats from 3.5 to 3.5", False),
        "32 bits": (encode(Image.fromarray(np.full((9, 9), 70000, np.int32)), "TIFF"), "signed 32-bit levels", True),
        "nothing": (b"", "empty", True),
        "zeros": (bytes(1000), "zeros", True),
        "text": (b"a cat sat on the mat", "no image of a known type", True),
        "a web page": (b"\n<!DOCTYPE html><html>404</html>", "a web page", True),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC.*convert", True),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known type", True),
        "a decompression bomb": (_png_header(40_000, 40_000), "more than 178,956,970 pixels", True),
    }


def write_classes(
    root: Path, classes: Mapping[str, int], *, size: tuple[int, int] = (12, 12), suffix: str = ".png", seed: int = 0
) -> None:
    """root/CLASS/NUMBER.png, of a bright bar whose angle and colour tell the class, so that a model can learn it."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for example in range(count):
            generator = np.random.default_rng([seed, number, example])
            image = Image.fromarray(draw_image(generator, number, *size, 3))
            image.save(root / name / f"{example:03}{suffix}")


def _with_thumbnail(jpeg: bytes, thumbnail: bytes) -> bytes:
    """A JPEG whose header holds another, with an end of its own."""
    body = b"JFXX\0\x10" + thumbnail
    return jpeg[:2] + b"\xff\xe0" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(13)
