"""A user's own images: files of every kind, folders and lists of every shape, and one line for each mistake."""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn.config import DataConfig
from jaxcnn.data import arrays as arrays_module
from jaxcnn.data import evaluation_batches, load_arrays, open_source
from jaxcnn.data import folder as folder_module
from jaxcnn.data.decoding import decode_any, decode_image, read_header, with_channels
from jaxcnn.data.encoded import inspect
from jaxcnn.data.given import prepared
from jaxcnn.data.records import Source
from jaxcnn.data.sources import open_stored
from jaxcnn.errors import RunError, UserError
from jaxcnn.files import open_regular
from tests.commands import ROOT, environment
from tests.fake_tfds import write_set
from tests.hostile_images import jpeg_that_says, mutated_images
from tests.nasty_images import damaged_images, encode, nasty_images, photo, tiff, write_classes

PETS = {"cat": 6, "dog": 8}


def opened(kind: str, path: Path, **fields: Any) -> Source:
    return open_source(DataConfig(name=f"{kind}:{path}", **fields))


def identifiers(source: Source, split: str) -> list[str]:
    chosen = source.splits[split]
    return [chosen.records.identifier(int(index)) for index in chosen.indices]


def refused(kind: str, path: Path, **fields: Any) -> str:
    """The one line that refuses a set."""
    with pytest.raises(UserError) as error:
        opened(kind, path, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- decoding


def test_every_kind_of_image_is_decoded() -> None:
    wrong: list[Any] = []
    for kind, image in nasty_images().items():
        shape = read_header(io.BytesIO(image.encoded))
        pixels = decode_any(image.encoded, shape[2])
        if not (shape == pixels.shape == image.pixels.shape and pixels.dtype == np.uint8):
            wrong.append((kind, shape, pixels.shape, image.pixels.shape))
        elif np.abs(pixels.astype(int) - image.pixels.astype(int)).max() > image.tolerance:
            wrong.append((kind, "other pixels"))
        else:
            other = decode_any(image.encoded, 4 - shape[2])
            np.testing.assert_array_equal(other, with_channels(pixels, 4 - shape[2]))
    assert not wrong


def test_what_is_damaged_is_said() -> None:
    for fault, (encoded, says, in_header) in damaged_images().items():
        with pytest.raises(ValueError, match=says) as error:
            decode_any(encoded, 3)
        assert str(error.value), fault
        assert "\n" not in str(error.value), fault
        if in_header:
            with pytest.raises(ValueError, match=says):
                read_header(io.BytesIO(encoded))


def test_whatever_is_sent_ends_in_pixels_or_in_one_line() -> None:
    """Of the header and of the pixels the same shape, or ValueError."""
    for kind, encoded in mutated_images(300):
        says: list[str] = []
        shape = None
        try:
            shape = read_header(io.BytesIO(encoded))
            assert decode_any(encoded, shape[2]).shape == shape, kind
        except ValueError as error:
            says.append(str(error))
        says.append(inspect(encoded).damage or "fine")
        assert all(line and "\n" not in line for line in says), kind


def test_a_small_file_of_a_huge_image_is_refused_by_its_header() -> None:
    size = struct.pack("<I", 9_000)
    floats = tiff(np.zeros((1, 1, 1)), colours=1)
    floats = floats[:18] + size + floats[22:30] + size + floats[34:]
    for encoded in (jpeg_that_says(40_000, 40_000), floats):
        for read in (lambda data: read_header(io.BytesIO(data)), lambda data: decode_any(data, 3)):
            with pytest.raises(ValueError, match="make it smaller"):
                read(encoded)


def test_channels_are_pillows() -> None:
    colours = photo()
    np.testing.assert_array_equal(with_channels(colours, 1)[..., 0], np.asarray(Image.fromarray(colours).convert("L")))
    np.testing.assert_array_equal(with_channels(colours[..., :1], 3), colours[..., [0, 0, 0]])


# ---- folders


def test_a_folder_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"class10": 20, "class2": 30, "Ähre mit Leerzeichen": 10})
    source = opened("folder", tmp_path)
    assert source.class_names == ("class2", "class10", "Ähre mit Leerzeichen")
    assert source.image_shape == (12, 12, 3)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 48, "validation": 6, "test": 6}
    everything = [each for split in source.splits for each in identifiers(source, split)]
    assert sorted(everything) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    records = source.splits["train"].records
    for record in range(len(records)):
        path = tmp_path / records.identifier(record)
        example = records[record]
        np.testing.assert_array_equal(example["image"], np.asarray(Image.open(path)))
        assert source.class_names[example["label"]] == source.class_names[records.labels()[record]] == path.parent.name
    assert source.class_counts is not None
    assert {split: sum(counts.values()) for split, counts in source.class_counts.items()} == {
        "train": 48, "validation": 6, "test": 6,
    }  # fmt: skip
    assert {name: sum(counts[name] for counts in source.class_counts.values()) for name in source.class_names} == {
        "class2": 30, "class10": 20, "Ähre mit Leerzeichen": 10,
    }  # fmt: skip


@pytest.mark.parametrize("validation", ["validation", "val", "Valid", None])
def test_folders_of_splits(tmp_path: Path, validation: str | None) -> None:
    write_classes(tmp_path / "train", {"cat": 20, "dog": 20})
    write_classes(tmp_path / "test", {"cat": 3, "dog": 2})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "LICENSE.txt").write_text("free")
    if validation:
        write_classes(tmp_path / validation, {"cat": 1, "dog": 0})  # an empty folder says that none is meant
    source = opened("folder", tmp_path)
    sizes = {name: len(split) for name, split in source.splits.items()}
    assert sizes == (
        {"train": 40, "validation": 1, "test": 5} if validation else {"train": 36, "validation": 4, "test": 5}
    )
    assert identifiers(source, "test") == [f"test/cat/00{i}.png" for i in range(3)] + [
        "test/dog/000.png",
        "test/dog/001.png",
    ]
    if validation:
        assert source.class_counts == {
            "train": {"cat": 20, "dog": 20}, "validation": {"cat": 1, "dog": 0}, "test": {"cat": 3, "dog": 2},
        }  # fmt: skip


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, {"bus": 20, "train": 20})
    assert opened("folder", tmp_path).class_names == ("bus", "train")


def test_a_test_without_labels_counts_as_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_classes(tmp_path / "train", {"cat": 10, "dog": 10})
    write_classes(tmp_path, {"test": 5})
    source = opened("folder", tmp_path)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 16, "validation": 2, "test": 2}
    assert "counts as absent" in caplog.text


def test_the_mess_that_folders_are(tmp_path: Path) -> None:
    """Hidden files, others, upper-case and wrong suffixes, folders within folders, links, and links in a ring."""
    write_classes(tmp_path / "set", PETS)
    cat, outside = tmp_path / "set" / "cat", tmp_path / "outside"
    write_classes(tmp_path, {"outside": 3})
    before = len(list((tmp_path / "set").rglob("*.png")))
    for name in (".DS_Store", "Thumbs.db", "._001.png", "notes.txt", "desktop.ini"):
        (cat / name).write_bytes(b"no image")
    for folder in (tmp_path / "set" / ".git", tmp_path / "set" / "__MACOSX"):
        write_classes(folder.parent, {folder.name: 1})
    (cat / "UPPER.JPG").write_bytes((cat / "000.png").read_bytes())  # a PNG
    (cat / "nested" / "deeper").mkdir(parents=True)
    (cat / "nested" / "deeper" / "猫 🐈.jpeg").write_bytes(encode(Image.fromarray(photo(12, 12)), "JPEG"))
    (cat / "a link.png").symlink_to(outside / "000.png")
    (cat / "linked").symlink_to(outside, target_is_directory=True)
    (cat / "nested" / "ring").symlink_to(tmp_path / "set", target_is_directory=True)
    (cat / "nested" / "system").symlink_to("/proc/self", target_is_directory=True)  # whose links lead everywhere
    (cat / "\x1b[2J.png").symlink_to(outside / "000.png")
    (cat / "nested" / "itself").symlink_to(cat / "nested", target_is_directory=True)
    source = opened("folder", tmp_path / "set", validation_fraction=0)
    names = identifiers(source, "train") + identifiers(source, "test")
    extra = {
        "cat/UPPER.JPG",
        "cat/nested/deeper/猫 🐈.jpeg",
        "cat/a link.png",
        "cat/\x1b[2J.png",
        *(f"cat/linked/00{i}.png" for i in range(3)),
    }
    assert len(names) == len(set(names)) == before + len(extra)
    assert extra <= set(names)
    assert source.class_names == ("cat", "dog")
    records = source.splits["train"].records
    by_name = {records.identifier(record): record for record in range(len(records))}
    first = records[by_name["cat/000.png"]]["image"]
    np.testing.assert_array_equal(records[by_name["cat/UPPER.JPG"]]["image"], first)


def test_links_that_multiply_and_folders_without_end(tmp_path: Path) -> None:
    """Thirty folders with two links each to the next have a billion paths; a thousand within one another, one."""
    write_classes(tmp_path / "set", PETS)
    for number in range(30):
        (tmp_path / str(number)).mkdir()
        for name in ("one", "other"):
            (tmp_path / str(number) / name).symlink_to(tmp_path / str(number + 1), target_is_directory=True)
    write_classes(tmp_path, {"30": 1})
    (tmp_path / "set" / "cat" / "link").symlink_to(tmp_path / "0", target_is_directory=True)
    deep = [str(tmp_path / "set" / "dog") + "/a" * depth for depth in range(1, 1201)]
    for folder in deep:
        os.mkdir(folder)
    try:
        source = opened("folder", tmp_path / "set")
    finally:  # pytest's own clearing up is recursive
        for folder in reversed(deep):
            os.rmdir(folder)
    assert sum(map(len, source.splits.values())) == sum(PETS.values()) + 1


def test_names_composed_and_decomposed_are_one_class(tmp_path: Path) -> None:
    """A Mac writes é as two letters."""
    write_classes(tmp_path / "train", {"caf\u00e9": 9, "tee": 9})
    write_classes(tmp_path / "test", {"cafe\u0301": 2, "tee": 2})
    source = opened("folder", tmp_path)
    assert source.class_names == ("caf\u00e9", "tee")
    assert identifiers(source, "test")[0] == "test/cafe\u0301/000.png"


def test_sizes_and_channels(tmp_path: Path) -> None:
    write_classes(tmp_path / "grey", PETS)
    for path in (tmp_path / "grey").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert opened("folder", tmp_path / "grey").image_shape == (12, 12, 1)
    forced = opened("folder", tmp_path / "grey", channels=3)
    assert forced.image_shape == forced.splits["train"][0]["image"].shape == (12, 12, 3)
    Image.fromarray(photo(12, 12)).save(tmp_path / "grey" / "cat" / "colour.jpg")  # one is enough
    mixed = opened("folder", tmp_path / "grey")
    assert mixed.image_shape == (12, 12, 3)
    assert {mixed.splits["train"].records[i]["image"].shape for i in range(15)} == {(12, 12, 3)}
    assert opened("folder", tmp_path / "grey", channels=1).splits["train"][0]["image"].shape == (12, 12, 1)
    assert "1 channel (grey) or 3" in refused("folder", tmp_path / "grey", channels=2)

    Image.fromarray(photo(30, 50)).save(tmp_path / "grey" / "dog" / "large.png")
    says = refused("folder", tmp_path / "grey")
    assert "12 to 30 pixels high and 12 to 50 wide" in says
    assert "data.image_size, for instance to 12" in says
    assert opened("folder", tmp_path / "grey", image_size=16).image_shape == (16, 16, 3)


def test_channels_are_forced_whatever_the_source(tmp_path: Path) -> None:
    write_set(tmp_path, splits={"train": 8, "test": 3})
    stored, forced = (open_source(DataConfig(name="tfds:shapes", dir=str(tmp_path), channels=c)) for c in (None, 1))
    assert (stored.image_shape, forced.image_shape) == ((12, 12, 3), (12, 12, 1))
    want = with_channels(stored.splits["test"][2]["image"], 1).astype(int)
    assert np.abs(forced.splits["test"][2]["image"] - want).max() <= 1
    grey, colour = open_source(DataConfig()), open_source(DataConfig(channels=3))
    assert colour.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(colour.splits["test"][5]["image"], grey.splits["test"][5]["image"].repeat(3, axis=2))


def test_fingerprint_is_of_the_data_not_of_its_place(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", PETS)
    write_classes(tmp_path / "elsewhere" / "two", PETS)
    fingerprint = opened("folder", tmp_path / "one").fingerprint
    os.utime(tmp_path / "elsewhere" / "two" / "cat" / "000.png", (1, 1))
    assert opened("folder", tmp_path / "elsewhere" / "two").fingerprint == fingerprint
    assert opened("folder", Path("two"), dir=str(tmp_path / "elsewhere")).fingerprint == fingerprint
    (tmp_path / "one" / "cat" / "000.png").rename(tmp_path / "one" / "dog" / "moved.png")
    assert opened("folder", tmp_path / "one").fingerprint != fingerprint


def test_resident_and_streamed_are_the_files(tmp_path: Path) -> None:
    write_classes(tmp_path, PETS)
    source = opened("folder", tmp_path, validation_fraction=0)
    split = source.splits["train"]
    want = np.stack([np.asarray(Image.open(tmp_path / name)) for name in identifiers(source, "train")])
    for _ in range(2):  # decoded, then from the cache
        images, labels = load_arrays(split, fingerprint=source.fingerprint, image_shape=source.image_shape, cache=True)
        np.testing.assert_array_equal(images, want)
        np.testing.assert_array_equal(labels, split.records.labels()[split.indices])
    os.utime(tmp_path / "cat" / "000.png", (1, 1))
    with evaluation_batches(
        pickle.loads(pickle.dumps(split)),
        batch_size=len(split),
        image_shape=(12, 12, 3),
        num_workers=0,
        prefetch_batches=1,
    ) as batches:
        np.testing.assert_array_equal(next(batches)["image"], want)


def test_real_images_as_files(tmp_path: Path, tfds_dir: str) -> None:
    """CIFAR-10's own JPEGs, as a folder: the same pixels as from TFDS."""
    prepared = open_source(DataConfig(name="tfds:cifar10", dir=tfds_dir, validation_fraction=0))
    records = prepared.splits["test"].records
    want = {}
    for record, serialized in enumerate(records._serialized(range(60))):  # type: ignore[attr-defined]
        encoded, label = records._parse(serialized)  # type: ignore[attr-defined]
        path = tmp_path / prepared.class_names[label] / f"{record:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded)
        want[str(path.relative_to(tmp_path))] = decode_image(encoded, 3)
    source = opened("folder", tmp_path, validation_fraction=0)
    assert (source.image_shape, source.class_names) == ((32, 32, 3), prepared.class_names)
    for split in ("train", "test"):
        for name, index in zip(identifiers(source, split), range(len(source.splits[split])), strict=True):
            np.testing.assert_array_equal(source.splits[split][index]["image"], want.pop(name))
    assert not want


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def _loose(root: Path) -> None:
    write_classes(root, PETS)
    for path in list((root / "cat").glob("*.png")) + list((root / "dog").glob("*.png")):
        path.rename(root / f"{path.parent.name}{path.name}")
    (root / "cat").rmdir()
    (root / "dog").rmdir()


def _splits(**splits: dict[str, int]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for name, classes in splits.items():
            write_classes(root / name, classes)

    return write


def _classes(**classes: int) -> Callable[[Path], None]:
    return lambda root: write_classes(root, classes)


def _odd_name(root: Path) -> None:
    write_classes(root, PETS)
    os.rename(root / "cat" / "000.png", os.fsencode(root) + b"/cat/\xff.png")


def _pipe(root: Path) -> None:
    write_classes(root, PETS)
    os.mkfifo(root / "cat" / "x.png")


def _broken_link(root: Path) -> None:
    write_classes(root, PETS)
    (root / "cat" / "x.png").symlink_to("gone.png")


FOLDER_MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing in it": (lambda root: root.mkdir(), r"no images in .*set \(it is empty\); expected PATH/CLASS/IMAGE"),
    "other things": (lambda root: _touch(root / "a.txt"), r"\(found 1 .txt\); expected"),
    "folders of other things": (lambda root: _touch(root / "cat" / "a.xml"), r"found 1 .xml, folders cat"),
    "an archive": (lambda root: _touch(root / "cats.zip"), r"found 1 .zip"),
    "no classes": (_loose, r"\(cat000.png, cat001.png, cat002.png and 11 more\) lie in no class's folder.*csv:PATH"),
    "splits without classes": (_classes(train=3, test=2), r"images in test lie in no class's folder"),
    "an empty class": (_classes(cat=3, dog=0), r"class 'dog' of train has no images \(it is empty\)"),
    "one class": (_classes(cat=9), r"only one class, 'cat'; expected"),
    "one folder too high": (lambda root: write_classes(root / "pets", PETS), r"did you mean folder:.*set/pets\?"),
    "no train": (_splits(test=PETS, val=PETS), r"has test and validation, but no train"),
    "a class missing": (_splits(train=PETS, test={"cat": 2}), r"test has no class 'dog'.*make an empty folder"),
    "a class too many": (
        _splits(train=PETS, val={**PETS, "dogs": 1}), r"validation has class 'dogs', which train has not.*'dog'",
    ),
    "a split misspelled": (_splits(train=PETS, vaildation=PETS), r"'vaildation', which is none.* 'validation'\?"),
    "two validations": (_splits(train=PETS, val=PETS, valid=PETS), r"2 folders for validation"),
    "a name that is no text": (_odd_name, r"cannot be written in a list; rename it"),
    "a name of two lines": (_classes(**{"cat": 2, "dog\rcat": 2}), r"'dog\\rcat/000.png' cannot be written in a list"),
    "a pipe": (_pipe, r"cat/x.png cannot be read: a device or pipe, not a file"),
    "a link to nothing": (_broken_link, r"cat/x.png cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "says"), FOLDER_MISTAKES.values(), ids=FOLDER_MISTAKES)
def test_mistakes_in_a_folder_are_answered_in_one_line(tmp_path: Path, write: Callable[[Path], Any], says: str) -> None:
    write(tmp_path / "set")
    assert re.search(says, refused("folder", tmp_path / "set"))


def test_mistakes_in_the_name_are_answered_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "pets", PETS)
    for name in ("list.csv", "arrays.npz", "pets.zip", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "nowhere").symlink_to("gone")
    monkeypatch.chdir(tmp_path)
    for name, says in {
        "folder:": "data.name='folder:' names no folder; pass --config.data.name=folder:PATH",
        "folder:pest": r"there is no 'pest' in .*: did you mean 'pets'\?",
        "folder:pets/nowhere/else": r"there is no 'nowhere' in .*pets",
        "folder:list.csv": r"is a file, not a folder; did you mean csv:list.csv\?",
        "folder:arrays.npz": r"did you mean npz:arrays.npz\?",
        "folder:pets.zip": "unpack it first",
        "folder:notes.txt": "expected PATH/CLASS/IMAGE",
        "folder:gs://bucket/pets": "only a local disk",
        "folder:~nosuchuser/pets": "there is no home folder of '~nosuchuser'",
        "folder:a\0b": "a path has no NUL",
        "csv:" + "x" * 5000: "the name is too long",
        "~\0": "is no known data set",
        "folder:/proc/self": "is the system's own",
        "npz:/dev/zero": "a device or pipe, not a file",
        "csv:/dev/zero": "a device or pipe, not a file",
        "csv:nowhere": "is a link that leads nowhere",
        "csv:pets": r"is a folder, not a file; did you mean folder:pets\?",
        "csv:": "names no csv",
        "npz:pets.npz": "there is no 'pets.npz'",
        "pets": r"did you mean folder:pets\?",
        "list.csv": r"did you mean csv:list.csv\?",
        "floder:pets": r"did you mean 'folder:PATH'\?",
    }.items():
        with pytest.raises(UserError, match=says) as error:
            open_source(DataConfig(name=name))
        assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By force: whoever runs the tests as root may read everything."""
    write_classes(tmp_path, PETS)

    def forbidden(path: Any, **options: Any) -> Any:
        if str(path).endswith("003.png"):
            raise PermissionError(13, "Permission denied", path)
        return open_regular(path, **options)

    monkeypatch.setattr(folder_module, "open_regular", forbidden)
    assert re.search(r"cat/003.png cannot be read: Permission denied", refused("folder", tmp_path))

    def closed(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder_module.os, "scandir", closed)
    assert re.search(f"{tmp_path} cannot be read: Permission denied", refused("folder", tmp_path))


def _device(root: Path) -> None:
    (root / "cat" / "x.png").symlink_to("/dev/zero")


def _sparse(root: Path) -> None:
    with (root / "cat" / "x.png").open("wb") as file:
        file.truncate(60 << 30)


@pytest.mark.parametrize(
    ("make", "says"),
    [(_pipe, "a device or pipe"), (_device, "a device or pipe"), (_sparse, "64,424,509,440 bytes, of at most")],
)
def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    write_classes(tmp_path, PETS)
    split = opened("folder", tmp_path, validation_fraction=0).splits["train"]
    (tmp_path / "cat" / "x.png").unlink(missing_ok=True)
    make(tmp_path)
    with pytest.raises((UserError, RunError), match=rf"cat/x\.png.*{says}"):
        opened("folder", tmp_path)
    ((_, answer),) = prepared([("x", str(tmp_path / "cat" / "x.png"))], image_shape=(8, 8, 3), ahead=1)
    assert says in str(answer)
    first = split.records.identifier(int(split.indices[0]))
    (tmp_path / first).unlink()
    (tmp_path / "cat" / "x.png").rename(tmp_path / first)  # once the set is open
    with pytest.raises(RunError, match=says):
        split[0]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 10, "dog": 10})
    encoded = encode(Image.fromarray(photo(12, 12)), "JPEG")
    (tmp_path / "cat" / "cut.jpg").write_bytes(encoded[:-40])  # its header is whole
    source = opened("folder", tmp_path, validation_fraction=0, image_size=8)
    split = source.splits["train"]
    with pytest.raises(RunError, match=r"cat/cut.jpg cannot be read \(image file is truncated.*replace or remove it"):
        load_arrays(split, fingerprint=source.fingerprint, image_shape=source.image_shape, cache=True)
    with (
        pytest.raises(RunError, match=r"cat/cut\.jpg"),
        evaluation_batches(
            split, batch_size=8, image_shape=source.image_shape, num_workers=0, prefetch_batches=1
        ) as batches,
    ):
        list(batches)

    (tmp_path / "cat" / "cut.jpg").unlink()
    for number in range(5):
        (tmp_path / "dog" / f"empty{number}.jpg").write_bytes(b"")
    with pytest.raises(RunError) as error:
        opened("folder", tmp_path)
    assert re.search(
        r"5 of 25 files cannot be read: dog/empty0.jpg \(the file is empty\), .*, .* and 2 more; replace or remove",
        str(error.value),
    )
    tolerant = open_source(DataConfig(name=f"folder:{tmp_path}"), damaged=True)
    assert sum(map(len, tolerant.splits.values())) == 25
    assert tolerant.image_shape == (12, 12, 3)


def test_damaged_files_that_are_excluded_are_no_concern(tmp_path: Path) -> None:
    """Neither one whose header is broken nor one that only decoding shows, by way of the cache that holds all files."""
    root = tmp_path / "images"
    write_classes(root, {"cat": 10, "dog": 10})
    encoded = encode(Image.fromarray(photo(12, 12)), "JPEG")
    (root / "cat" / "cut.jpg").write_bytes(encoded[:-40])
    (root / "cat" / "empty.jpg").write_bytes(b"")
    (tmp_path / "list.txt").write_text("cat/cut.jpg\ncat/empty.jpg\n")
    source = opened("folder", root, image_size=8, exclude=str(tmp_path / "list.txt"))
    assert source.num_excluded == 2
    for split in source.splits.values():
        images, labels = load_arrays(split, fingerprint=source.fingerprint, image_shape=source.image_shape, cache=True)
        assert len(images) == len(split)
        assert labels.min() >= 0


def test_a_file_that_changes_its_size_is_noticed(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 10, "dog": 10})
    records = opened("folder", tmp_path).splits["train"].records
    Image.fromarray(photo(13, 12)).save(tmp_path / "cat" / "000.png")
    with pytest.raises(RunError, match=r"cat/000.png has changed since the run began.*\(13, 12, 3\)"):
        records[0]


# ---- CSV


def write_csv(root: Path, text: str, *, images: dict[str, int] | None = None, encoding: str = "utf-8") -> Path:
    write_classes(root / "images", images or PETS)
    file = root / "list.csv"
    file.write_bytes(text.encode(encoding))
    return file


def lines(heading: str, *, delimiter: str = ",", split: bool = False) -> str:
    rows = [heading]
    for name, count in PETS.items():
        for number in range(count):
            fields = [f"images/{name}/{number:03}.png", {"cat": "10", "dog": "9"}[name]]
            rows.append(delimiter.join([*fields, *(["test" if number < 2 else "Train"] if split else [])]))
    return "\r\n".join(rows) + "\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (lines("path,label"), "utf-8"),
        (lines(" Path;LABEL", delimiter=";"), "utf-8-sig"),
        (lines("path\tlabel", delimiter="\t"), "utf-8"),
        (lines("path,label").replace("/", "\\"), "utf-8"),
        (
            lines("path;label", delimiter=";")
            .replace("l\r", "l;a, note, or two\r")
            .replace("0\r", "0;\r")
            .replace("9\r", "9;x\r"),
            "utf-8",
        ),
    ],
)
def test_a_list_of_files(tmp_path: Path, text: str, encoding: str) -> None:
    source = opened("csv", write_csv(tmp_path, text, encoding=encoding))
    assert source.class_names == ("9", "10")
    records = source.splits["train"].records
    assert sorted(records.identifier(i) for i in range(14)) == sorted(
        f"images/{name}/{i:03}.png" for name, count in PETS.items() for i in range(count)
    )
    for record in range(14):
        np.testing.assert_array_equal(
            records[record]["image"], np.asarray(Image.open(tmp_path / records.identifier(record)))
        )
        assert records[record]["label"] == ("cat" in records.identifier(record))


def test_a_list_with_splits_and_whole_paths(tmp_path: Path) -> None:
    text = lines("path,label,split", split=True)
    file = write_csv(tmp_path, text)
    source = opened("csv", file, validation_fraction=0)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 10, "test": 4}
    assert identifiers(source, "test") == [f"images/{name}/00{i}.png" for name in ("dog", "cat") for i in range(2)]
    file.write_text(text.replace("images/", f"{tmp_path}/images/"))
    assert opened("csv", file).fingerprint == source.fingerprint
    file.write_text(text.replace("images/cat/003.png,10", "images/cat/003.png,9"))
    assert opened("csv", file).fingerprint != source.fingerprint


CSV = "path,label\nimages/cat/000.png,cat\nimages/dog/000.png,dog\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no column 'path' in its first line"),
        ("file,label\na,b\n", r"has no column 'path' in its first line; one of: file, label"),
        ("path,labels\na,b\n", r"has no column 'label' in its first line; did you mean 'labels'\?"),
        ("path,label\n", "lists no image"),
        (CSV + "images/cat/999.png,cat\n", "line 4: images/cat/999.png cannot be read: No such file"),
        (CSV + "\nimages/cat/001.png,\n", "line 5 has an empty label"),
        (CSV + ",cat\n", "line 4 has an empty path"),
        (CSV + "images/cat/001.png\n", "line 4 has 1 fields, not the 2 of the heading"),
        (CSV + "./images/cat/000.png,dog\n", "lines 2 and 4 both list images/cat/000.png .labels 'cat' and 'dog'"),
        ("path,label,split\nimages/cat/000.png,cat,trian\n", "line 2 has split 'trian'; did you mean 'train'"),
        ("path,label,split\nimages/cat/000.png,cat,train\nimages/cat/000.png,cat,test\n", "splits train and test"),
        ("path,label,split\nimages/cat/000.png,cat,test\n", "has test, but no train"),
        ("path,label\nimages/cat/000.png,cat\n", "only one class, 'cat'"),
        ("path,label\nimages/cat,cat\nimages/dog,dog\n", "line 2: images/cat cannot be read: a folder, not a file"),
        ("path,label\n\udcff,cat\n", "is not UTF-8"),
        (CSV + "images/cat/\0.png,cat\n", r"line 4 has the control character '\\x00' in its path; take it out"),
        (CSV + "images/cat/001.png,a\x1b[2J\n", r"line 4 has the control character '\\x1b' in its label"),
        (CSV + "a" * 200_000 + ",cat\n", "line 4 has a path of 200,000 characters, more than 4,096"),
        (CSV + "/dev/zero,cat\n", "line 4: /dev/zero cannot be read: a device or pipe, not a file"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_are_answered_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = write_csv(tmp_path, "")
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert re.search(says, refused("csv", file))


def test_a_label_of_two_lines_is_one_name(tmp_path: Path) -> None:
    file = write_csv(tmp_path, lines("path,label").replace(",10", ',"ten\r\n or so"'))
    assert opened("csv", file).class_names == ("9", "ten or so")


# ---- npz


def levels(number: int = 30, shape: tuple[int, ...] = (6, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, *shape)).astype(np.uint8)


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path / "arrays.npz", **arrays)
    return path / "arrays.npz"


LABELS = np.arange(30) % 3


@pytest.mark.parametrize(
    ("keys", "splits"),
    [
        (("x_train", "y_train", "x_test", "y_test"), {"train": 27, "validation": 3, "test": 30}),
        (("train_images", "train_labels", "val_images", "val_labels"), {"train": 27, "validation": 3, "test": 30}),
        (("images", "labels"), {"train": 24, "validation": 3, "test": 3}),
    ],
)
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
def test_arrays(tmp_path: Path, keys: tuple[str, ...], splits: dict[str, int], shape: tuple[int, ...]) -> None:
    arrays = {key: LABELS if "y_" in key or "labels" in key else levels(shape=shape) for key in keys}
    source = opened("npz", write_npz(tmp_path, **arrays))
    assert {name: len(split) for name, split in source.splits.items()} == splits
    assert source.image_shape == (6, 5, shape[2] if len(shape) == 3 else 1)
    assert source.class_names == ("0", "1", "2")
    records = source.splits["train"].records
    assert records.identifier(12) == "train:12"
    assert records[12]["label"] == 0
    np.testing.assert_array_equal(records[13]["image"], levels(shape=shape)[13].reshape(source.image_shape))


@pytest.mark.parametrize(
    "labels", [LABELS[:, None], np.eye(3, dtype=np.uint8)[LABELS], np.eye(3)[LABELS], LABELS.astype(np.float32)]
)
def test_labels_of_every_shape(tmp_path: Path, labels: np.ndarray) -> None:
    records = opened("npz", write_npz(tmp_path, images=levels(), labels=labels)).splits["train"].records
    assert records.labels().dtype == np.int32
    np.testing.assert_array_equal(records.labels(), LABELS)


def test_soft_labels_stay_soft(tmp_path: Path) -> None:
    soft = np.random.default_rng(0).dirichlet(np.ones(4), 30)
    records = opened("npz", write_npz(tmp_path, images=levels(), labels=soft)).splits["train"].records
    assert records.labels().dtype == records[3]["label"].dtype == np.float32
    np.testing.assert_array_equal(records.labels(), soft.astype(np.float32))
    np.testing.assert_array_equal(records[3]["label"], soft[3].astype(np.float32))


def test_levels_that_are_exact_are_taken(tmp_path: Path) -> None:
    images = levels()
    for stored in (
        images.astype(np.float32) / 255,
        (images / 255).astype(np.float16),
        images / 255,
        images.astype(np.float32),
        images.astype(np.int64),
    ):
        # A test that happens to be dark is on the scale of train.
        dark = stored[:3] * 0 + stored.dtype.type(1) * (stored.max() > 1)
        source = opened("npz", write_npz(tmp_path, x_train=stored, y_train=LABELS, x_test=dark, y_test=LABELS[:3]))
        np.testing.assert_array_equal(source.splits["train"].records.images[..., 0], images)  # type: ignore[attr-defined]
        assert source.splits["test"][0]["image"].max() == (1 if stored.max() > 1 else 0)
    source = opened("npz", write_npz(tmp_path, images=images > 99, labels=LABELS))
    np.testing.assert_array_equal(source.splits["train"].records.images[..., 0], (images > 99) * 255)  # type: ignore[attr-defined]
    assert opened("npz", tmp_path / "arrays.npz", channels=3).image_shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x_trian": levels(), "y_train": LABELS}, r"'x_trian': did you mean 'x_train'\?"),
        ({"data": levels()}, "has data; expected x_train and y_train, train_images and"),
        ({"x_test": levels(), "y_test": LABELS}, "expected x_train and y_train"),
        ({"images": levels(), "labels": LABELS, "x_test": levels()}, "'x_test'"),
        ({"images": levels(29), "labels": LABELS}, "images has 29 images, but labels has 30 labels"),
        ({"images": levels()[0], "labels": LABELS}, r"shape \(6, 5\); expected \[N, H, W\]"),
        ({"images": levels(shape=(3, 6, 5)), "labels": LABELS}, r"transposed by \(0, 2, 3, 1\)"),
        ({"images": levels(shape=(6, 5, 4)), "labels": LABELS}, "the last is 1 or 3 channels"),
        ({"images": levels(0), "labels": LABELS[:0]}, r"shape \(0, 6, 5\)"),
        ({"images": levels() / 127.5 - 1, "labels": LABELS}, "float64 from -1 to 1, which is not exactly 8 bits"),
        ({"images": levels().astype(np.uint16) * 257, "labels": LABELS}, "uint16 from 0 to 65535"),
        ({"images": levels() + np.float32(np.nan), "labels": LABELS}, "from nan to nan"),
        ({"images": levels().astype(str), "labels": LABELS}, "save it as uint8"),
        ({"images": levels(), "labels": LABELS - 1}, "values from -1 to 1; expected 0, 1, 2"),
        ({"images": levels(), "labels": LABELS + 0.5}, "expected 0, 1, 2"),
        ({"images": levels(), "labels": LABELS.astype(str)}, r"expected int \[N\]"),
        ({"images": levels(), "labels": np.ones((30, 2))}, "do not sum to one"),
        ({"images": levels(), "labels": LABELS * 0}, "only one class"),
        ({"x_train": levels(), "y_train": LABELS, "x_test": levels(), "y_test": LABELS + 1}, "y_test has 4 classes"),
        ({"x_train": levels(), "y_train": LABELS, "x_test": levels(shape=(7, 5)), "y_test": LABELS}, "other shapes"),
        ({"images": np.array([{}]), "labels": LABELS}, "Python objects"),
        ({"images": levels(), "labels": LABELS, "class_names": ["a", "b"]}, "2 names for 3 classes"),
        ({"images": levels(), "labels": LABELS, "class_names": 5}, r"class_names is int64 of shape \(\); expected str"),
        ({"images": levels(), "labels": np.int64(3)}, "30 images, but labels has 0 labels"),
        ({"images": levels(), "labels": np.where(LABELS == 2, 2**31 - 2, LABELS)}, "of labels is 2,147,483,646"),
    ],
)  # fmt: skip
def test_mistakes_in_arrays_are_answered_in_one_line(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    assert re.search(says, refused("npz", write_npz(tmp_path, **arrays)))


@pytest.mark.parametrize("code", [0x110000, 0xD800])
def test_names_that_are_no_text(tmp_path: Path, code: int) -> None:
    names = np.array([97, 98, code], np.uint32).view("<U1")
    with pytest.raises(RunError, match="is damaged"):
        opened("npz", write_npz(tmp_path, images=levels(), labels=LABELS, class_names=names))


def test_a_part_is_enough_to_measure_on(tmp_path: Path) -> None:
    file = write_npz(tmp_path, x_test=levels(), y_test=LABELS)
    assert "expected x_train and y_train" in refused("npz", file)
    stored = open_stored(DataConfig(name=f"npz:{file}"), partial=True)
    assert (list(stored.splits), stored.class_names) == (["test"], ("0", "1", "2"))


def lying_npz(file: Path, shape: str, content: bytes) -> None:
    """An npz whose images say that they have `shape`."""
    heading = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    labels = io.BytesIO()
    np.save(labels, np.arange(2))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", 118) + heading.encode() + content)
        archive.writestr("labels.npy", labels.getvalue())


@pytest.mark.parametrize("shape", ["(2, 10000000, 10000000)", "(-1, 8, 8)", "'x'", "(2, 8, 8)", "((2, 8"])
def test_an_npz_that_lies_is_not_unpacked(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "_read", None)
    lying_npz(tmp_path / "arrays.npz", shape, b"\0" * 100)
    with pytest.raises(RunError, match="is damaged") as error:
        opened("npz", tmp_path / "arrays.npz")
    assert "\n" not in str(error.value)


def test_an_npz_that_fills_the_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "_read", None)
    monkeypatch.setattr(arrays_module, "_ALWAYS_TAKEN", 1 << 20)
    lying_npz(tmp_path / "arrays.npz", "(2, 2000, 1000)", bytes(4_000_000))
    assert re.search(r"unpacks from 4,\d\d\d to 4,000,016 bytes", refused("npz", tmp_path / "arrays.npz"))


def test_a_damaged_npz(tmp_path: Path) -> None:
    file = write_npz(tmp_path, images=levels(), labels=LABELS)
    whole = file.read_bytes()
    for encoded in (whole[:-30], whole[:50], b"", b"no archive", whole[:200] + bytes([whole[200] ^ 8]) + whole[201:]):
        file.write_bytes(encoded)
        with pytest.raises(RunError, match=r"damaged") as error:
            opened("npz", file)
        assert "\n" not in str(error.value)


# ---- by chance


ODD = (
    b"\0",
    b"\n",
    b"\r",
    b'"',
    b";",
    b"\t",
    b"../",
    b"/dev/zero",
    b"\xff",
    b"\x1b[2J",
    b"99999999999",
    b"-1",
    b"(",
    b"|O",
)


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 4, 10])):
        at = int(generator.integers(len(changed) + 1))
        match generator.integers(4):
            case 0:
                changed[at : at + 1] = bytes([generator.integers(256)])
            case 1:
                changed[at:at] = ODD[generator.integers(len(ODD))]
            case 2:
                del changed[at : at + int(generator.integers(1, 20))]
            case 3:
                changed[at:at] = changed[generator.integers(len(changed)) :][: int(generator.integers(1, 40))]
    return bytes(changed)


def remade(file: Path, generator: np.random.Generator) -> bytes:
    """An npz, whole, of which the beginning of one array is mutated."""
    content = io.BytesIO()
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as after:
        chosen = generator.choice(before.namelist())
        for name in before.namelist():
            array = before.read(name)
            after.writestr(name, mutated(array[:128], generator) + array[128:] if name == chosen else array)
    return content.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:Reading")  # numpy's, of arrays of Python 2
def test_mutations_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    """1,000 lists and 1,000 arrays: no error but ours."""
    generator = np.random.default_rng(seed)
    listed = write_csv(tmp_path, lines("path;label;split", delimiter=";", split=True)).read_bytes()
    arrays = write_npz(tmp_path, images=levels(), labels=LABELS, class_names=["a", "b", "c"])
    found = {"opened": 0, "refused": 0}
    for _ in range(1000):
        (tmp_path / "odd.csv").write_bytes(mutated(listed, generator))
        (tmp_path / "odd.npz").write_bytes(remade(arrays, generator))
        for kind in ("csv", "npz"):
            try:
                open_stored(DataConfig(name=f"{kind}:{tmp_path}/odd.{kind}"))
                found["opened"] += 1
            except (UserError, RunError):
                found["refused"] += 1
    assert min(found.values()) > 10


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("own")
    write_classes(folder / "pets", {"cat": 12, "dog": 12}, suffix=".jpg")
    (folder / "pets" / "dog" / "grey.gif").write_bytes(encode(Image.fromarray(photo(12, 12)).convert("L"), "GIF"))
    command = [
        sys.executable, "-m", "jaxcnn.main", "--config=experiments/folder.py:small",
        f"--config.data.name=folder:{folder / 'pets'}", "--config.num_steps=2", "--config.batch_size=8",
        "--config.model.name=mlp", "--config.tensorboard=false", "--config.log_every_steps=1",
        f"--workdir={folder / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    return folder, done


def test_the_command_trains_on_a_folder(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = trained
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads((folder / "run" / "config.json").read_text())["data"]
    assert facts["class_names"] == ["cat", "dog"]
    assert facts["num_examples"] == {"train": 21, "validation": 2, "test": 2}
    assert facts["class_counts"].keys() == {"train", "validation", "test"}
    assert sum(facts["class_counts"]["train"].values()) == 21
    assert facts["stored_sizes"] == {"smallest": [12, 12], "median": [12, 12], "largest": [12, 12]}
    assert (len(facts["mean"]), facts["image_shape"]) == (3, [12, 12, 3])
    assert json.loads((folder / "run" / "summary.json").read_text())["status"] == "finished"
