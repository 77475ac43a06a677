"""Checking finds every fault that is planted, and nothing in what is clean."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from jaxcnn.config import DataConfig
from jaxcnn.data import __main__ as command
from jaxcnn.data import facts
from jaxcnn.data.checking import KINDS, as_csv, as_json, check, to_exclude
from jaxcnn.data.decoding import decode_image
from jaxcnn.data.duplicates import groups_of_equals, near_pairs
from jaxcnn.data.encoded import Header, inspect
from jaxcnn.data.exclusion import read_exclusion, without
from jaxcnn.data.facts import perceptual_hashes
from jaxcnn.data.records import DamagedRecordError, ImagesInMemory, Split, StoredSet
from jaxcnn.data.sources import open_stored
from jaxcnn.errors import UserError
from jaxcnn.terminal import short_line
from tests.large_images import HELD, CountedRecords
from tests.nasty_images import tiff

CLASSES = ("sky", "roof", "petal", "leaf", "rare", "none")
SIDE = 36


@dataclass
class Files:
    """Records of image files that a test writes; an array stands for one that decodes to just that."""

    name: str
    stored: list[bytes | np.ndarray] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    files: tuple = ()

    def add(self, stored: bytes | np.ndarray, label: int) -> str:
        self.stored.append(stored)
        self.classes.append(label)
        return self.identifier(len(self) - 1)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, record: int) -> dict:
        stored = self.stored[record]
        try:
            image = stored if isinstance(stored, np.ndarray) else decode_image(stored, 3)
        except Exception as error:
            raise DamagedRecordError(f"{self.identifier(record)} is damaged ({short_line(error)})") from error
        return {"image": image, "label": self.classes[record]}

    def labels(self, progress=None) -> np.ndarray:
        return np.array(self.classes, np.int32)

    def identifier(self, record: int) -> str:
        return f"{self.name}/{record:04}.jpg"

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[dict]:
        return (self[int(record)] for record in records)

    def encoded(self, records: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        for record in records:
            stored = self.stored[record]
            yield encode(stored) if isinstance(stored, np.ndarray) else stored


def encode(image: np.ndarray, suffix: str = ".png", quality: int = 95) -> bytes:
    bgr = image[:, :, ::-1] if image.shape[2] == 3 else image
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    ok, encoded = cv2.imencode(suffix, np.ascontiguousarray(bgr), settings)
    assert ok
    return encoded.tobytes()


def as_set(**splits: Files) -> StoredSet:
    return StoredSet(
        class_names=CLASSES,
        image_shape=(None, None, 3),
        splits={name: Split(files, np.arange(len(files))) for name, files in splits.items()},
        fingerprint="",
    )


def correlations(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of all pairs, over all pixels, in grey: [N, M]. The check itself never does this."""
    vectors = []
    for each in (images, others):
        flat = each.mean(axis=-1, dtype=np.float32).reshape(len(each), -1)
        flat -= flat.mean(axis=1, keepdims=True)
        vectors.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
    return vectors[0] @ vectors[1].T


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """Photographs cut into pieces that share no pixel, without the flat ones: uint8 [N, 36, 36, 3].

    That no two of them look alike is seen by comparing all pairs, pixel by pixel, mirrored too.
    """
    pieces = [
        photograph[top : top + SIDE, left : left + SIDE]
        for photograph in load_sample_images().images
        for top in range(0, photograph.shape[0] - SIDE + 1, SIDE)
        for left in range(0, photograph.shape[1] - SIDE + 1, SIDE)
    ]
    found = np.stack([piece for piece in pieces if piece.std(axis=(0, 1)).mean() > 25])
    for others in (found, found[:, :, ::-1]):
        alike = correlations(found, others)
        np.fill_diagonal(alike, 0)
        assert alike.max() < 0.9
    assert len(found) >= 130
    return found


def clean_files(tiles: np.ndarray) -> tuple[Files, Files]:
    """Train of four classes and test, with 10 images or more of each class."""
    train, test = Files("train"), Files("test")
    for number, tile in enumerate(tiles[:100]):
        train.add(encode(tile, (".png", ".jpg")[number % 2]), number % 4)
    for number, tile in enumerate(tiles[100:120]):
        test.add(encode(tile, ".jpg"), number % 4)
    return train, test


def test_a_clean_set_has_no_fault(tiles):
    train, test = clean_files(tiles)
    stored = as_set(train=train, test=test)
    four = StoredSet(CLASSES[:4], stored.image_shape, stored.splits, "")
    report = check(four)
    assert report.faults == []
    assert report.num_images == {"train": 100, "test": 20}
    assert not report.has_errors
    assert to_exclude(report) == []


def test_the_digits_are_clean():
    assert check(open_stored(DataConfig(name="digits"))).faults == []


@pytest.fixture(scope="module")
def planted(tiles) -> tuple[StoredSet, set[tuple[str, str, str]]]:
    """A set with faults of every kind, and what they are: (kind, identifier, other)."""
    train, test = clean_files(tiles)
    expected = set()
    fresh = iter(tiles[120:])

    def plant(kind: str, files: Files, stored: bytes | np.ndarray, label: int = 0, other: str = "") -> str:
        identifier = files.add(stored, label)
        expected.add((kind, identifier, other))
        return identifier

    jpeg = encode(next(fresh), ".jpg")
    plant("truncated", train, jpeg[: len(jpeg) * 2 // 3])
    plant("unreadable", train, b"no image at all")
    plant("unreadable", test, b"")
    plant("label_range", train, encode(next(fresh)), 6)
    plant("label_range", train, encode(next(fresh)), -1)
    plant("channels", train, cv2.cvtColor(next(fresh), cv2.COLOR_RGB2GRAY)[:, :, None])
    plant("duplicate", train, train.stored[8], train.classes[8], train.identifier(8))
    plant("duplicate", train, train[9]["image"], train.classes[9], train.identifier(9))
    plant("duplicate", test, test.stored[3], test.classes[3], test.identifier(3))
    plant("leak", train, test.stored[0], test.classes[0], test.identifier(0))
    conflicting = plant("duplicate", train, train.stored[13], 3, train.identifier(13))
    assert train.classes[13] != 3
    expected |= {
        ("label_conflict", conflicting, train.identifier(13)),
        ("label_conflict", train.identifier(13), conflicting),
    }

    # Nearly the same: compressed, smaller, brighter and cut, mirrored, and one under another label.
    image = train[20]["image"]
    plant("near_duplicate", train, encode(image, ".jpg", 40), train.classes[20], train.identifier(20))
    image = train[22]["image"]
    plant(
        "near_duplicate",
        train,
        encode(cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA)),
        train.classes[22],
        train.identifier(22),
    )
    image = test[5]["image"]
    brighter = cv2.convertScaleAbs(cv2.resize(image[1:, 1:], (SIDE, SIDE)), alpha=0.8, beta=40)
    plant("near_leak", train, encode(brighter), test.classes[5], test.identifier(5))
    image = test[7]["image"]
    plant("near_leak", train, encode(image[:, ::-1], ".jpg", 80), test.classes[7], test.identifier(7))
    image = train[24]["image"]
    mislabelled = plant("near_duplicate", train, encode(image, ".jpg", 60), 1, train.identifier(24))
    assert train.classes[24] != 1
    expected.add(("near_label_conflict", mislabelled, train.identifier(24)))

    plant("blank", train, encode(np.full((SIDE, SIDE, 3), (10, 200, 30), np.uint8)))
    plant("blank", train, encode(np.full((SIDE, SIDE, 3), (10, 200, 30), np.uint8)))
    noise = np.random.default_rng(0).integers(120, 123, (SIDE, SIDE, 3)).astype(np.uint8)
    noise[:, :, 2] = 60
    plant("near_blank", train, encode(noise))
    plant("size", train, encode(cv2.resize(next(fresh), (5 * SIDE, 5 * SIDE)), ".jpg"))
    plant("aspect", train, encode(cv2.resize(next(fresh), (4 * SIDE, SIDE))))
    grey = cv2.cvtColor(next(fresh), cv2.COLOR_RGB2GRAY)
    plant("grey", train, encode(np.stack([grey] * 3, axis=2)))
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(next(fresh)).convert("P", palette=Image.Palette.ADAPTIVE).save(file, "PNG")
    plant("colours", train, file.getvalue())
    train.add(encode(next(fresh)), 4)
    expected |= {("few_images", "", ""), ("empty_class", "", ""), ("imbalance", "", "")}
    return as_set(train=train, test=test), expected


def test_every_planted_fault_is_found_and_nothing_else(planted):
    stored, expected = planted
    report = check(stored)
    found = {(fault.kind, fault.identifier, fault.other) for fault in report.faults}
    assert found == expected
    assert set(report.counts()) == set(KINDS), "a kind is planted nowhere"
    assert report.has_errors
    classes = {(fault.kind, fault.split, fault.label) for fault in report.faults if not fault.identifier}
    assert classes == {
        ("few_images", "train", "rare"), ("empty_class", "train", "none"), ("empty_class", "test", "rare"),
        ("empty_class", "test", "none"),
    } | {("imbalance", "train", label) for kind, _, label in classes if kind == "imbalance"}  # fmt: skip
    by_other = {fault.other: fault.detail for fault in report.faults if fault.kind in ("near_leak", "duplicate")}
    assert by_other["test/0007.jpg"].endswith("mirrored")
    assert not by_other["test/0005.jpg"].endswith("mirrored")
    assert by_other["train/0008.jpg"] == "the same file"
    assert by_other["train/0009.jpg"] == "the same pixels"


def test_the_clean_list_leaves_test_as_published(planted, tmp_path):
    stored, _ = planted
    report = check(stored)
    listed = dict(to_exclude(report))
    found = {kind: [fault.identifier for fault in report.faults if fault.kind == kind] for kind in KINDS}
    for kind in ("unreadable", "truncated", "label_range", "channels", "leak", "near_leak", "label_conflict", "blank"):
        assert set(found[kind]) <= listed.keys(), kind
    from_test = {identifier for identifier in listed if identifier.startswith("test")}
    assert from_test == {identifier for identifier in found["unreadable"] if identifier.startswith("test")}
    assert not set(found["near_duplicate"]) & listed.keys()
    kept = [identifier for identifier in found["duplicate"] if identifier not in listed]
    assert all(identifier.startswith("test") for identifier in kept)

    file = tmp_path / "clean.txt"
    command.write_clean_list(file, report)
    splits, count = without(stored.splits, read_exclusion(str(file)), "planted")
    assert count == len(listed)
    again = check(StoredSet(CLASSES, stored.image_shape, splits, ""))
    assert not again.has_errors
    assert not {"leak", "near_leak", "blank"} & again.counts().keys()
    assert {fault.split for fault in again.faults if fault.kind == "duplicate"} == {"test"}


def test_a_report_as_rows_and_as_json(planted):
    report = check(planted[0])
    rows = list(csv.DictReader(io.StringIO(as_csv(report.faults))))
    assert [row["kind"] for row in rows] == [fault.kind for fault in report.faults]
    assert {row["severity"] for row in rows} == {"error", "warning", "note"}
    plain = json.loads(json.dumps(as_json(report)))
    assert {kind: each["count"] for kind, each in plain["kinds"].items()} == report.counts()


def test_records_that_are_arrays_and_soft_labels():
    """No files to look into; a soft label counts as its likeliest class."""

    class Soft(ImagesInMemory):
        def labels(self, progress=None):
            return self.classes

        def __getitem__(self, record):
            return {"image": self.images[record], "label": self.classes[record]}

    images = np.random.default_rng(0).integers(0, 256, (60, 9, 9, 3)).astype(np.uint8)
    images[59] = images[0]
    labels = np.eye(3, dtype=np.float32)[np.arange(60) % 3] * 0.8 + 0.1
    stored = StoredSet(("a", "b", "c"), (9, 9, 3), {"train": Split(Soft("soft", images, labels), np.arange(60))}, "")
    report = check(stored)
    assert {(fault.kind, fault.identifier) for fault in report.faults} == {
        ("duplicate", "soft:59"), ("label_conflict", "soft:59"), ("label_conflict", "soft:0"),
    }  # fmt: skip


# ---- pieces


def test_perceptual_hashes_are_of_opencvs_cosine_transform():
    pictures = np.random.default_rng(0).uniform(0, 255, (20, 32, 32)).astype(np.float32)
    hashes = perceptual_hashes(pictures)
    for picture, own, mirrored in zip(pictures, *hashes.T, strict=True):
        for image, found in ((picture, own), (picture[:, ::-1], mirrored)):
            spectrum = cv2.dct(np.ascontiguousarray(image))[:8, :8].ravel()
            bits = spectrum > np.median(spectrum[1:])
            assert np.packbits(bits).view(np.uint64)[0] == found


def test_equal_digests_are_grouped():
    digests = np.array([[1, 1], [2, 1], [1, 1], [1, 2], [2, 1], [1, 1]], np.uint64)
    assert [group.tolist() for group in groups_of_equals(digests)] == [[0, 2, 5], [1, 4]]
    assert groups_of_equals(digests[:2]) == []


def test_candidates_are_all_pairs_of_near_hashes():
    """Beside comparing all pairs: none up to seven bits is missed, few up to ten, none is found twice."""
    from jaxcnn.data.duplicates import _candidates

    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 1 << 63, 400).astype(np.uint64)
    for position in range(200, 400):  # changed copies of the first half, in 1 to 10 bits
        flipped = generator.choice(64, 1 + position % 10, replace=False)
        hashes[position] = hashes[position - 200] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64))
    distance = np.bitwise_count(hashes[:, None] ^ hashes)
    found = [
        pair for left, right in _candidates(hashes, hashes) for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    for limit, missed in ((7, 0), (10, 8)):
        wanted = {(i, j) for i, j in np.argwhere(distance <= limit).tolist() if i < j}
        assert len(wanted) >= 100
        assert len(wanted - set(found)) <= missed
    assert all(distance[pair] <= 10 for pair in found)


def test_few_images_are_compared_too():
    none = near_pairs(np.zeros((3, 2), np.uint64), np.zeros((3, 16, 16), np.uint8), false_alarms=1)
    assert len(none.positions) == 0


def test_files_are_held_one_at_a_time(monkeypatch):
    class Files(CountedRecords):
        read_ahead = looked_at = 0

        def encoded(self, records):
            for record in records:
                self.read_ahead = max(self.read_ahead, int(record) - self.looked_at)
                if record == 7:
                    raise DamagedRecordError("7 cannot be read")
                yield b"%d" % record

    records = Files()

    def look(encoded):
        records.looked_at = int(encoded)
        return Header("RGB", "damaged" if encoded == b"9" else None)

    monkeypatch.setattr(facts, "inspect", look)
    found = facts.gather({"train": records.split()})
    assert (records.most <= HELD, records.read_ahead) == (True, 2)
    assert found.damaged == {9: "damaged"}
    assert found.stored.tolist() == ["RGB"] * 7 + [""] + ["RGB"] * 52


def test_other_programs_are_not_asked():
    """Pillow would hand PostScript to Ghostscript."""
    assert inspect(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == ("", "no image of a known type")
    deep = np.dstack([np.linspace(0, 65535, 81).reshape(9, 9, 1)] * 3)
    assert inspect(tiff(deep.astype(np.uint16), colours=2)) == ("RGB of 16 bits", None)
    assert inspect(tiff((deep / 65535).astype(np.float32), colours=2)) == ("RGB of 32 bits", None)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_a_file_cut_short_is_seen(tiles, suffix):
    whole = encode(tiles[0], suffix)
    assert inspect(whole) == ("RGB", None)
    for length in (len(whole) // 4, len(whole) // 2, len(whole) - 20):
        assert inspect(whole[:length]).damage is not None, length


def test_damage_within_a_file_is_seen(tiles):
    png = bytearray(encode(tiles[0]))
    png[len(png) // 2] ^= 0xFF
    assert "checksum" in str(inspect(bytes(png)).damage)
    thumbnail = b"\xff\xe1\x00\x08Exif\xff\xd9"  # an end-of-image marker in the header is not the image's
    jpeg = encode(tiles[0], ".jpg")
    with_thumbnail = jpeg[:2] + thumbnail + jpeg[2:]
    assert inspect(with_thumbnail) == ("RGB", None)
    assert inspect(with_thumbnail[: len(jpeg) * 9 // 10]).damage == "the JPEG ends before its image does"


@pytest.mark.parametrize(("mode", "file_format", "name"), [
    ("L", "JPEG", "grey"), ("CMYK", "JPEG", "CMYK"), ("RGB", "PNG", "RGB"), ("P", "PNG", "palette"),
    ("LA", "PNG", "grey with alpha"), ("RGBA", "PNG", "RGB with alpha"), ("I;16", "PNG", "grey of 16 bits"),
    ("P", "GIF", "palette"), ("L", "BMP", "grey"),
])  # fmt: skip
def test_how_a_file_stores_its_colours(mode, file_format, name):
    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, file_format)
    assert inspect(file.getvalue()) == (name, None)


# ---- real sets


def first_images(tfds_dir: str, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    split = open_stored(DataConfig(name=name, dir=tfds_dir)).splits["test"]
    examples = list(split.records.read(np.arange(count)))
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])


def in_memory(images: np.ndarray, labels: np.ndarray) -> StoredSet:
    split = Split(ImagesInMemory("test", images, labels), np.arange(len(images)))
    return StoredSet(tuple("0123456789"), images.shape[1:], {"test": split}, "")  # type: ignore[arg-type]


def test_no_digit_of_mnist_is_called_a_copy_of_another(tfds_dir):
    """Although hundreds of them correlate by 0.95 and more."""
    images, labels = first_images(tfds_dir, "tfds:mnist", 3000)
    alike = np.triu(correlations(images, images), 1)
    assert (alike > 0.95).sum() > 100
    assert check(in_memory(images, labels)).faults == []


def test_copies_among_photographs_are_found_and_no_others(tfds_dir):
    """CIFAR-10's pictures without those that comparing all pairs of pixels finds alike; changed copies join them."""
    images, labels = first_images(tfds_dir, "tfds:cifar10", 2000)
    for others in (images, images[:, :, ::-1]):
        alike = np.triu(correlations(images, others), 1)
        lonely = ~(alike > 0.9).any(axis=1)
        images, labels = images[lonely], labels[lonely]
    assert len(images) > 1500
    assert not {"duplicate", "near_duplicate"} & check(in_memory(images, labels)).counts().keys()
    copies = [decode_image(encode(image, ".jpg", 50), 3) for image in images[:40]]
    copies += [cv2.resize(image[1:, :-1], (32, 32)) for image in images[40:80]]
    copies += [image[:, ::-1] for image in images[80:120]]
    report = check(in_memory(np.concatenate([images, copies]), np.concatenate([labels, labels[:120]])))
    pairs = [fault for fault in report.faults if fault.kind == "near_duplicate"]
    numbers = [(int(fault.identifier.split(":")[1]), int(fault.other.split(":")[1])) for fault in pairs]
    assert all(copy - original == len(images) for copy, original in numbers)
    assert len(pairs) >= 110


# ---- the command


def run(*arguments: str) -> int:
    return command.main(["jaxcnn.data", *arguments], 0.0)


@pytest.fixture
def opens_planted(planted, monkeypatch):
    monkeypatch.setattr(command, "open_stored", lambda data, **_: planted[0])


def test_the_command_reports_writes_and_never_overwrites(opens_planted, planted, tmp_path, capsys):
    files = {name: tmp_path / f"{name}.out" for name in ("write-clean", "csv", "json")}
    flags = [f"--{name}={file}" for name, file in files.items()]
    assert run("check", "planted", *flags) == 1
    out = capsys.readouterr().out
    assert "same picture under two" in re.sub(r"\s*│[^│]*│?\n?", " ", out) or "under two" in out
    assert "errors" in out
    assert all(file.stat().st_size for file in files.values())
    assert len(files["csv"].read_text().splitlines()) == 1 + len(check(planted[0]).faults)
    files["csv"].write_text("mine")
    with pytest.raises(UserError, match="--force"):
        run("check", "planted", f"--csv={files['csv']}")
    assert files["csv"].read_text() == "mine"
    assert run("check", "planted", f"--csv={files['csv']}", "--force") == 1
    assert files["csv"].read_text() != "mine"
    # What is left out is not reported any more; what remains are no errors.
    assert run("check", "planted", f"--exclude={files['write-clean']}", "--near_threshold=0") == 0


def test_a_clean_set_ends_with_0(capsys):
    assert run("check", "digits") == 0
    assert "1,797 images" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "no command given: one of: check, describe, prepare"),
    (["chek", "digits"], "did you mean 'check'"),
    (["check"], "needs a set"),
    (["check", "--csv=x", "digits"], "needs a set"),
    (["check", "digitz"], "did you mean 'digits'"),
    (["check", "digits", "--write-claen=x"], "write_clean"),
    (["check", "digits", "more"], "unexpected argument 'more'"),
    (["check", "digits", "--near_threshold=-1"], "near_threshold"),
    (["check", "digits", "--csv=/nowhere/at/all.csv"], "cannot be written: No such file or directory"),
    (["check", "digits", "--csv=/"], "cannot be written: Is a directory"),
    (["check", "digits", "--csv=nope://x"], "cannot be written: No such file or directory"),
    (["check", "digits", "--csv=/proc/x"], "--csv=/proc/x cannot be written"),
    (["check", "digits", "--csv=x.out", "--json=./x.out"], "--csv and --json would both write"),
    (["check", "digits", "--near_threshold=nan"], "is no number"),
    (["check", "digits", "--near_threshold=inf"], "near_threshold"),
    (["describe", "digits", "--image_size=1" + "0" * 30], "image_size"),
    (["describe", "digits", "--sheet=/proc/x.png"], "--sheet=/proc/x.png cannot be written"),
    (["check", "digits", "--exclude=/nowhere.txt"], "nowhere.txt"),
])  # fmt: skip
def test_a_wrong_command_gets_one_line(arguments, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", range(8))
def test_a_few_images_are_too_few_to_say_what_is_alike(count: int) -> None:
    generator = np.random.default_rng(count)
    thumbnails = generator.integers(0, 256, (count, 16, 16), np.uint8)
    hashes = np.array([[1, 2]] * count, np.uint64).reshape(count, 2)
    assert len(near_pairs(hashes, thumbnails, false_alarms=1e-3).positions) == 0
