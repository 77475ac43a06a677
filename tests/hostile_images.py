"""Image files that nobody should send: mutations of real ones, bombs, and shapes beyond all use. Each seed the same."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.nasty_images import nasty_images, png_of


def mutated_images(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(kind of the file and number, bytes): real files of every kind in turn, each damaged in up to three places."""
    kinds = sorted((kind, image.encoded) for kind, image in nasty_images().items())
    for number in range(count):
        kind, encoded = kinds[number % len(kinds)]
        yield f"{kind}, {number}", mutated(encoded, np.random.default_rng([seed, number]))


def mutated(encoded: bytes, generator: np.random.Generator) -> bytes:
    """Bytes flipped, set to extremes, cut out, put in or doubled, most of them in the header."""
    data = bytearray(encoded)
    for _ in range(generator.integers(1, 4)):
        near_start = generator.random() < 0.7
        at = int(generator.integers(min(len(data), 200) if near_start else len(data)))
        length = int(generator.integers(1, 9))
        match generator.integers(6):
            case 0:
                data[at] ^= 1 << int(generator.integers(8))
            case 1:
                data[at : at + length] = bytes([int(generator.choice([0, 1, 127, 128, 255]))]) * length
            case 2:
                data[at : at + length] = generator.bytes(length)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = generator.bytes(length)
            case 5:
                data = data[: max(1, int(generator.integers(len(data))))] if generator.random() < 0.3 else data
                data[at:at] = data[at : at + 4 * length]
        if len(data) < 2:
            break
    if encoded.startswith(b"\x89PNG") and generator.random() < 0.8:
        data = bytearray(_with_checksums(bytes(data)))  # else little of a PNG's decoder is met
    return bytes(data)


def png_of_zeros(width: int, height: int, *, depth: int = 8, colours: int = 2) -> bytes:
    """A valid PNG, a thousandth as large as what it holds. `colours` as in its header: 0 grey, 2 RGB, 6 RGBA."""
    row = bytes(1 + -(-width * depth * {0: 1, 2: 3, 6: 4}[colours] // 8))
    compressor = zlib.compressobj(9)
    rows = [compressor.compress(row) for _ in range(height)]
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", b"".join([*rows, compressor.flush()])), (b"IEND", b"")])


def jpeg_that_says(width: int, height: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose header says otherwise."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    encoded = file.getvalue()
    frame = encoded.index(b"\xff\xc0") + 5
    return encoded[:frame] + struct.pack(">HH", height, width) + encoded[frame + 4 :]


def _with_checksums(encoded: bytes) -> bytes:
    """The PNG, each chunk with the checksum that its bytes have now."""
    data, at = bytearray(encoded), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)
