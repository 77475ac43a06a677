"""Files of weights and of data sets as a stranger may send them: real ones, mutated. The same seed, the same bytes.

`torch_file`, `safetensors_file`, `description`, `tfrecord` and `array_record` each take a seed.
"""

import copy
import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tests import fake_tfds

# ---- PyTorch's pickles, by opcode


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def called(module: str, name: str, arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n(".encode() + arguments + b"tR"


def storage_of(size: bytes = b"K\x04", key: bytes = unicode("0"), kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    return b"(" + unicode("storage") + kind + key + unicode("cpu") + size + b"tQ"


def tensor_of(shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85", storage: bytes = storage_of()) -> bytes:
    return called("torch._utils", "_rebuild_tensor_v2", storage + b"K\x00" + shape + strides + b"\x89}")


def dict_of(value: bytes, key: bytes = unicode("w")) -> bytes:
    return b"\x80\x02}" + key + value + b"s."


def zip_of(data: bytes, storages: dict[str, bytes] | None = None, folder: str = "archive") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", data)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, values in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", values)
        archive.writestr(f"{folder}/version", "3\n")
    return file.getvalue()


# ---- mutations

NUMBERS = (-1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64)
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, 0.5, 1e308, float("nan"), "", "..", "../../x", "/dev/zero", "\x1b[31m", "a\nb", "\0",
    "\u202e", "w" * 5000, "os.system", "{0.__class__}", "{SPLIT:>99999999}", [], {}, [[]], [0] * 70, {"a": {}}, "NaN",
    "\ud800",
)  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four changes of bytes: flipped, cut, repeated, moved, overwritten by numbers at the edge of a type."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 40, 400))
        part = content[at : at + length]
        number = struct.pack("<Q", rng.choice(NUMBERS) % 2**64)[: rng.choice((1, 2, 4, 8))]
        new = rng.choice(
            (
                bytes(rng.randrange(256) for _ in part[:8]),
                b"",
                part * rng.choice((2, 3, 300) if len(content) < 100_000 else (2,)),
                number,
                part[::-1],
            )
        )
        content = content[:at] + new + content[at + (length if rng.random() < 0.7 else 0) :]
        if rng.random() < 0.05:
            content = content[: rng.randrange(len(content) + 1)]
    return content


def mutated_json(value: Any, rng: random.Random) -> Any:
    """One to three of its values or names replaced, repeated or left out."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return value
        parent, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 0.8:
            del parent[key]
        elif isinstance(parent, list):
            parent.extend(copy.deepcopy(parent * (100 if len(parent) < 100 else 1)))
        else:
            parent[rng.choice(("../x", "", "type", "json", "w" * 3000, "\x1b"))] = parent.pop(key)
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


# ---- weights

_PIECES = (
    b"(", b")", b"}", b"]", b"N", b"\x88", b"t", b"\x85", b"\x86", b"s", b"u", b"a", b"e", b"R", b"b", b"Q", b"q\x01",
    b"h\x01", b"0", b"2", b"\x81", b"\x94", b"\x93", b".", b"K\x00", b"K\x01", b"J\xff\xff\xff\xff", b"ctorch\nSize\n",
    b"r\xff\xff\xff\xff", b"j\x00\x00\x00\x10", b"\x8a\x08" + struct.pack("<q", 2**62), b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nDoubleStorage\n",
    b"cos\nsystem\n", unicode("w"), unicode("storage"), unicode("w" * 5000), storage_of(), tensor_of(),
    b"G" + b"\xff" * 8,
)  # fmt: skip


def torch_file(seed: int) -> bytes:
    """A `.pth` in either format: its pickle of pieces out of order, or any of its bytes changed."""
    rng = random.Random(seed)
    number = lambda: rng.choice(
        (b"K\x04", b"K\x01", b"K\x00", b"\x8a\x08" + struct.pack("<q", rng.choice(NUMBERS[:12])))
    )
    sizes = lambda: rng.choice((b")", number() + b"\x85", number() + number() + b"\x86", b"](" + number() * 20 + b"e"))
    honest = rng.random() < 0.5
    shape, strides = (b"K\x04\x85", b"K\x01\x85") if honest else (sizes(), sizes())
    pieces = [b"\x80\x02", b"}", unicode("w"), tensor_of(shape, strides, storage_of(b"K\x04" if honest else number()))]
    pieces += [b"s", b"."]
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 6)):
            pieces.insert(rng.randrange(1, len(pieces)), rng.choice(_PIECES))
    data, values = b"".join(pieces), np.arange(4, dtype=np.float32).tobytes()
    if rng.random() < 0.5:
        data = mutated(data, rng)
    if rng.random() < 0.5:
        content = zip_of(data, {"0": values})
    else:
        keys = b"\x80\x02](" + unicode("0") + b"e."
        head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
        content = head + data + keys + struct.pack("<Q", 4) + values
    return mutated(content, rng) if rng.random() < 0.3 else content


def safetensors_file(seed: int) -> bytes:
    """A `.safetensors` with a false header, or any of its bytes changed."""
    rng = random.Random(seed)
    values = np.arange(10, dtype=np.float32).tobytes()
    header: Any = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [6], "data_offsets": [16, 40]},
    }
    if rng.random() < 0.8:
        header = mutated_json(header, rng)
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = mutated(text, rng)
    length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    content = struct.pack("<Q", length) + text + values
    return mutated(content, rng) if rng.random() < 0.2 else content


# ---- data sets


def example(seed: int) -> bytes:
    """A tf.train.Example, honest or not."""
    rng = random.Random(seed)
    label = rng.choice((0, 1, 4, 5, -1, 2**31, 2**40, -(2**63), 2**63 - 1))
    image = rng.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(1000)))
    content = fake_tfds.serialized(image, label, "\0\x1b" * rng.choice((0, 1, 1000)))
    return mutated(content, rng) if rng.random() < 0.7 else content


def description(seed: int) -> tuple[bytes, bytes]:
    """The dataset_info.json and features.json of fake_tfds.write_set's set, of which at least one is changed."""
    rng = random.Random(seed)
    info = fake_tfds.info("shapes", "1.0.0", None, {"train": 40, "test": 12}, 2, "array_record")
    features = fake_tfds.features_of((12, 12, 3), 5, "png")
    texts = []
    for value, changed in ((info, seed % 3 != 1), (features, seed % 3 != 0)):
        text = json.dumps(mutated_json(value, rng) if changed else value).encode()
        texts.append(mutated(text, rng) if changed and rng.random() < 0.2 else text)
    return texts[0], texts[1]


def tfrecord(seed: int) -> bytes:
    """Records whose checksums are right, and lengths and contents not; or any of its bytes changed."""
    rng = random.Random(seed)
    content = b""
    for number in range(rng.randint(1, 4)):
        record = example(seed * 7 + number)
        length = struct.pack("<Q", len(record) if rng.random() < 0.7 else rng.choice(NUMBERS) % 2**64)
        content += length + _masked(length) + record + _masked(record)
    return mutated(content, rng) if rng.random() < 0.5 else content


def _masked(data: bytes) -> bytes:
    value = google_crc32c.value(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def array_record(seed: int, count: int = 4) -> bytes:
    """A file of records that are no examples; or any of its bytes changed, its header and its end too."""
    from array_record.python.array_record_module import ArrayRecordWriter

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number in range(count):
            writer.write(example(seed * 7 + number))
        writer.close()
        content = path.read_bytes()
    return mutated(content, rng) if rng.random() < 0.7 else content


MAKERS: dict[str, Callable[[int], bytes]] = {  # by the suffix that their files have
    ".pth": torch_file,
    ".safetensors": safetensors_file,
    ".tfrecord": tfrecord,
    ".array_record": array_record,
}
