"""Writes image files of every kind that users have, with the pixels that must come out, and files that are damaged."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping
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
    images |= _odd_tiffs(colours, deep)
    images |= _odd_metadata(rgb, jpeg, pillow(jpeg), deep)
    for orientation in range(1, 9):
        exif = with_orientation(orientation)
        images[f"TIFF, 16 bits RGB, orientation {orientation}"] = Nasty(
            tiff(deep, colours=2, orientation=orientation), turned(rounded, orientation)
        )
        images[f"JPEG, orientation {orientation}"] = Nasty(
            encode(rgb, "JPEG", quality=95, exif=exif), turned(pillow(jpeg), orientation)
        )
    return images


def tiff(
    levels: np.ndarray,
    *,
    colours: int,
    bits: int | None = None,
    extra: int | None = None,
    planes: bool = False,
    order: str = "<",
    orientation: int = 1,
) -> bytes:
    """An uncompressed TIFF of levels [H, W, C]. `colours`: 0 white is 0, 1 black is 0, 2 RGB; `extra` as in its tag."""
    height, width, samples = levels.shape
    bits = bits or levels.dtype.itemsize * 8
    if bits % 8:  # 12: packed, rows padded to a byte
        digits = ["".join(f"{level:0{bits}b}" for level in row.ravel()) for row in levels]
        rows = [int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in digits]
        data = b"".join(rows)
    else:
        stored = levels.transpose(2, 0, 1) if planes else levels
        data = stored.astype(f"{order}{levels.dtype.kind}{levels.dtype.itemsize}").tobytes()
    strips = samples if planes else 1
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * samples), 259: ("H", [1]), 262: ("H", [colours]),
        273: ("I", []), 274: ("H", [orientation]), 277: ("H", [samples]), 278: ("I", [height]),
        279: ("I", [len(data) // strips] * strips), 284: ("H", [2 if planes else 1]),
        339: ("H", [{"u": 1, "i": 2, "f": 3}[levels.dtype.kind]] * samples),
    }  # fmt: skip
    if extra is not None:
        tags[338] = "H", [extra]
    values_at = 8 + 2 + 12 * len(tags) + 4
    tags[273] = "I", [values_at + 256 + len(data) // strips * strip for strip in range(strips)]
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack(f"{order}I", values_at + len(values)), values + packed
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + values.ljust(256, b"\0") + data


def _odd_tiffs(colours: np.ndarray, deep: np.ndarray) -> dict[str, Nasty]:
    """Those that one decoder or both get wrong, and that must come out right."""
    grey, eight = deep[:, :, :1], np.round(deep / 257.0).astype(np.uint8)
    twelve = deep >> 4
    of_twelve = np.round(twelve / 4095.0 * 255).astype(np.uint8)
    floats = (grey / 65535).astype(np.float32)
    half = np.full_like(grey, 32768)
    share = 32768 / 65535
    over_white = np.round(eight * share + 255 * (1 - share))
    premultiplied = np.round(deep * share).astype(np.uint16)
    shares = np.full_like(colours[:, :, :1], 128)
    eight_over_white = np.round(colours * (128 / 255.0) + 127)
    levels = colours[:, :, :1]
    images = {
        "TIFF, white is 0": Nasty(tiff(255 - levels, colours=0), levels),
        "TIFF, 12 bits RGB": Nasty(tiff(twelve, colours=2, bits=12), of_twelve),
        "TIFF, 12 bits grey": Nasty(tiff(twelve[:, :, :1], colours=1, bits=12), of_twelve[:, :, :1]),
        "TIFF, 12 bits grey, white is 0": Nasty(tiff(4095 - twelve[:, :, :1], colours=0, bits=12), of_twelve[:, :, :1]),
        "TIFF, floats, white is 0": Nasty(tiff(1 - floats, colours=0), eight[:, :, :1], 1),
        "TIFF, floats of 64 bits": Nasty(tiff(grey / 65535, colours=1), eight[:, :, :1]),
        "TIFF, planes": Nasty(tiff(colours, colours=2, planes=True), colours),
        "TIFF, grey and alpha": Nasty(
            tiff(np.dstack([levels, shares]), colours=1, extra=2), eight_over_white[:, :, :1], 1
        ),
        "TIFF, grey and a sample that means nothing": Nasty(
            tiff(np.dstack([levels, shares]), colours=1, extra=0), levels
        ),
        "TIFF, RGB and alpha": Nasty(tiff(np.dstack([colours, shares]), colours=2, extra=2), eight_over_white, 1),
        "TIFF, RGB and a sample that means nothing": Nasty(
            tiff(np.dstack([colours, shares]), colours=2, extra=0), colours
        ),
    }
    for order, name in (("<", ""), (">", ", big-endian")):
        images |= {
            f"TIFF, 16 bits grey, white is 0{name}": Nasty(tiff(65535 - grey, colours=0, order=order), eight[:, :, :1]),
            f"TIFF, 16 bits RGB{name}, by hand": Nasty(tiff(deep, colours=2, order=order), eight),
            f"TIFF, 16 bits RGB and alpha{name}": Nasty(
                tiff(np.dstack([deep, half]), colours=2, extra=2, order=order), over_white, 1
            ),
            f"TIFF, 16 bits RGB multiplied by alpha{name}": Nasty(
                tiff(np.dstack([premultiplied, half]), colours=2, extra=1, order=order), over_white, 1
            ),
            f"TIFF, 16 bits RGB and a sample that means nothing{name}": Nasty(
                tiff(np.dstack([deep, half]), colours=2, extra=0, order=order), eight
            ),
        }
    return {kind: image._replace(pixels=image.pixels.astype(np.uint8)) for kind, image in images.items()}


def _odd_metadata(rgb: Image.Image, jpeg: bytes, decoded: np.ndarray, deep: np.ndarray) -> dict[str, Nasty]:
    """Orientations and transparent colours in the places where one decoder looks and another does not."""
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation='6'/></x:xmpmeta>"
    long = b"Exif\0\0MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x112, 4, 1, 6, 0)
    exif = b"eXIf", with_orientation(6).tobytes()[6:]
    png = png_chunks(encode(rgb, "PNG"))
    data = next(number for number, (kind, _) in enumerate(png) if kind == b"IDAT")
    shuffled = np.random.default_rng(0).permutation(deep.ravel()).reshape(deep.shape)
    rounded = np.round(shuffled / 257.0).astype(np.uint8)
    hole = shuffled[3, 3]
    holes, grey_holes = (shuffled == hole).all(axis=2, keepdims=True), shuffled[:, :, :1] == hole[0]
    height, width, _ = deep.shape

    def deep_png(kind: int, levels: np.ndarray, transparent: np.ndarray) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
        key = transparent.astype(">u2").tobytes()
        return png_of([(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])

    floats = (deep[::-1, :, 0] / 65535).astype("<f4").tobytes()
    return {
        "JPEG turned by a long of EXIF, big-endian": Nasty(_with_segment(jpeg, long), turned(decoded, 6)),
        "JPEG turned by XMP in single quotes": Nasty(
            _with_segment(jpeg, b"http://ns.adobe.com/xap/1.0/\0" + xmp), turned(decoded, 6)
        ),
        "PNG turned by XMP": Nasty(
            png_of([*png[:data], (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), *png[data:]]),
            turned(np.asarray(rgb), 6),
        ),
        "PNG with EXIF after its pixels": Nasty(png_of([*png[:-1], exif, png[-1]]), np.asarray(rgb)),
        "PNG, 16 bits grey with a transparent level": Nasty(
            deep_png(0, shuffled[:, :, 0], hole[:1]), np.where(grey_holes, 255, rounded[:, :, :1]).astype(np.uint8)
        ),
        "PNG, 16 bits RGB with a transparent colour": Nasty(
            deep_png(2, shuffled, hole), np.where(holes, 255, rounded).astype(np.uint8)
        ),
        "TIFF with an XMP that would turn it": Nasty(
            encode(rgb, "TIFF", tiffinfo={700: xmp.replace(b"'", b'"')}), np.asarray(rgb)
        ),
        "PFM": Nasty(
            b"Pf\n%d %d\n-1.0\n" % (width, height) + floats, np.round(deep[:, :, :1] / 257.0).astype(np.uint8), 1
        ),
    }


def damaged_images() -> dict[str, tuple[bytes, str, bool]]:
    """By fault: the file, what must be said of it, and whether its header already tells."""
    rgb = Image.fromarray(photo())
    jpeg, png = encode(rgb, "JPEG"), encode(rgb, "PNG")
    deep = cv2.imencode(".png", photo().astype(np.uint16) * 257)[1].tobytes()
    floats = Image.fromarray(np.full((9, 9), 3.5, np.float32))
    wide = np.zeros((9, 9, 3), np.uint16)
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
        "a bomb of 16 bits": (_png_header(13_000, 13_000, depth=16), "13,000 x 13,000 pixels are 967 MiB", True),
        "TIFF, signed": (tiff(np.zeros((9, 9, 1), np.int8), colours=1), "signed 8-bit levels", True),
        "TIFF, 16 bits in planes": (
            tiff(wide, colours=2, planes=True),
            "3 samples of 16 bits in separate planes",
            True,
        ),
        "TIFF, 16 bits grey and alpha": (tiff(wide[..., :2], colours=1, extra=2), "2 samples of 16 bits", True),
        "TIFF, 16 bits RGB cut": (tiff(wide, colours=2)[:-9], "truncated|OpenCV cannot", False),
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


def _with_segment(jpeg: bytes, body: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def png_chunks(encoded: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of each."""
    chunks, at = [], 8
    while at < len(encoded):
        end = at + 8 + int.from_bytes(encoded[at : at + 4], "big")
        chunks.append((encoded[at + 4 : at + 8], encoded[at + 8 : end]))
        at = end + 4
    return chunks


def png_of(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _png_header(width: int, height: int, *, depth: int = 8) -> bytes:
    return png_of([(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)), (b"IDAT", bytes(9))])
