"""TFDS sets prepared without TensorFlow, from a server that breaks off and lies, and by processes killed midway."""

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from jaxcnn.config import DataConfig
from jaxcnn.data import open_source
from jaxcnn.data import prepare as prepare_module
from jaxcnn.data.downloads import BLOCK, Downloads
from jaxcnn.data.prepare import prepare
from jaxcnn.data.tfrecord import convert, read_tfrecord
from jaxcnn.errors import RunError, UserError
from tests.fake_tfds import write_set

SIZES = {"train": 12, "test": 5}
SIDE = 16  # pixels, of imagenette's images here


class Server:
    """Serves files from memory on 127.0.0.1; each fault is for one request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, range
        self.break_after: int | None = None  # bytes of the answer
        self.status = 200
        self.ranges = True
        self.length: str | None = None  # what Content-Length says instead of the truth
        self.location: str | None = None  # of a redirect
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        content = self.files.get(request.path[1:])
        if self.location is not None:
            request.send_response(302)
            request.send_header("Location", self.location)
            request.send_header("Content-Length", "0")
            return request.end_headers()
        if content is None or self.status != 200:
            return request.send_error(404 if content is None else self.status)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(content):
            return request.send_error(416)
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", self.length or str(len(content) - start))
        request.end_headers()
        stop = len(content) if self.break_after is None else start + self.break_after
        self.break_after = None
        request.wfile.write(content[start:stop])
        request.wfile.flush()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


Pixels = list[tuple[int, bytes]]  # label and image of each example, sorted: the order of the records is TFDS's


def make_set(name: str, server: Server, patch: Any) -> dict[str, Pixels]:
    """Serves small files in the published format of a set, and has TFDS's builder take them for the published ones."""
    return {"mnist": make_mnist, "cifar10": make_cifar10, "imagenette": make_imagenette}[name](server, patch)


def make_mnist(server: Server, patch: Any) -> dict[str, Pixels]:
    from tensorflow_datasets.image_classification import mnist

    generator, expected = np.random.default_rng(0), {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = generator.integers(0, 256, (SIZES[split], 28, 28, 1), np.uint8)
        labels = generator.integers(0, 10, SIZES[split], np.uint8)
        server.files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(bytes(16) + images.tobytes(), mtime=0)
        server.files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(bytes(8) + labels.tobytes(), mtime=0)
        patch.setattr(mnist, f"_{split.upper()}_EXAMPLES", SIZES[split])
        expected[split] = pixels(zip(images, labels, strict=True))
    patch.setattr(mnist.MNIST, "URL", server.url)
    register(mnist.MNIST, server, patch)
    return expected


def make_cifar10(server: Server, patch: Any) -> dict[str, Pixels]:
    from tensorflow_datasets.image_classification import cifar

    generator, expected, files = np.random.default_rng(1), {}, {"batches.meta.txt": b"\n".join(CIFAR10_CLASSES)}
    for split, names in (("train", [f"data_batch_{i}.bin" for i in range(1, 6)]), ("test", ["test_batch.bin"])):
        examples: list[Any] = []
        for name in names:
            images = generator.integers(0, 256, (4, 32, 32, 3), np.uint8)
            labels = generator.integers(0, 10, 4, np.uint8)
            drawn = list(zip(images, labels, strict=True))
            files[name] = b"".join(bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in drawn)
            examples += drawn
        expected[split] = pixels(examples)
    files = {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}
    server.files["cifar-10-binary.tar.gz"] = gzip.compress(tar(files), mtime=0)
    info = cifar.Cifar10._cifar_info.fget(SimpleNamespace(name="cifar10"))  # type: ignore[attr-defined]
    url = server.url + "cifar-10-binary.tar.gz"
    patch.setattr(cifar.Cifar10, "_cifar_info", property(lambda self: info._replace(url=url)))
    register(cifar.Cifar10, server, patch)
    return expected


CIFAR10_CLASSES = b"airplane automobile bird cat deer dog frog horse ship truck".split()


def make_imagenette(server: Server, patch: Any) -> dict[str, Pixels]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_cls("imagenette")
    labels = tfds.core.tfds_path("image_classification/imagenette_labels.txt").read_text().split()
    generator, expected, files = np.random.default_rng(2), {}, {}
    for split, folder in (("train", "train"), ("test", "val")):
        examples = []
        for number in range(SIZES[split]):
            label = number % 3
            image = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            encoded = cv2.imencode(".jpg", image)[1].tobytes()
            files[f"imagenette2-160/{folder}/{labels[label]}/{folder}_{number}.JPEG"] = encoded
            examples.append((decode(encoded), label))
        expected[split] = pixels(examples)
    server.files["imagenette2-160.tgz"] = gzip.compress(tar(files), mtime=0)
    patch.setattr(sys.modules[builder.__module__], "_URL_PREFIX", server.url)
    register(builder, server, patch)
    return expected


def register(builder: Any, server: Server, patch: Any) -> None:
    from tensorflow_datasets.core.download.checksums import UrlInfo

    infos = {
        server.url + name: UrlInfo(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=name)
        for name, content in server.files.items()
    }
    patch.setattr(builder, "url_infos", infos)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def decode(encoded: bytes) -> np.ndarray:
    """RGB, [H, W, 3]."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[:, :, ::-1]


def pixels(examples: Any) -> Pixels:
    return sorted((int(label), np.ascontiguousarray(image).tobytes()) for image, label in examples)


def read(name: str, directory: Path, **config: Any) -> dict[str, Pixels]:
    """What our reader finds, all of train in one split."""
    source = open_source(DataConfig(name=f"tfds:{name}", dir=str(directory), validation_fraction=0.0, **config))
    return {
        split: pixels((example["image"], example["label"]) for example in map(found.__getitem__, range(len(found))))
        for split, found in source.splits.items()
    }


def prepared_folders(directory: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(directory)) for path in directory.glob("*/**/dataset_info.json"))


@pytest.mark.parametrize(
    ("name", "given", "config"),
    [
        ("mnist", "mnist", {}),
        ("cifar10", "tfds:cifar10:3.0.2", {}),
        ("imagenette", "imagenette/160px-v2", {"image_size": SIDE}),
    ],
)
def test_a_set_holds_what_was_served(name, given, config, server, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    expected = make_set(name, server, monkeypatch)
    told: list[tuple[str, int, int]] = []
    folder = prepare(given, data_dir=str(tmp_path), progress=lambda *step: told.append(step))
    assert read(given.removeprefix("tfds:"), tmp_path, **config) == expected
    assert prepared_folders(tmp_path) == [str(folder.relative_to(tmp_path))]
    assert tfds.builder_from_directory(folder).info.supervised_keys == ("image", "label")
    assert not list((tmp_path / "downloads" / "extracted").glob("*/*"))
    for word in ("downloading", "unpacking", "generating", "writing"):
        steps = [(done, total) for what, done, total in told if what.startswith(word)]
        assert steps, word
        assert all(done <= total for done, total in steps if total), word

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("requests.get", no_network)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    told.clear()
    assert prepare(given, data_dir=str(tmp_path), progress=lambda *step: told.append(step)) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "prepared already" in told[0][0]
    # Prepared again from what was downloaded: the same bytes.
    contents = {path.name: path.read_bytes() for path in folder.glob("*array_record*")}
    shutil.rmtree(folder)
    prepare(given, data_dir=str(tmp_path))
    assert contents == {path.name: path.read_bytes() for path in folder.glob("*array_record*")}


def test_imagenet_from_an_archive_downloaded_by_hand(server, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    rows, columns = np.mgrid[:40, :40].astype(np.uint8)
    image = np.stack([5 * rows, 5 * columns, 0 * rows], axis=2)  # smooth, for JPEG; its channels are not exchanged
    encoded = {
        "n01440764_1.JPEG": cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes(),
        "n02105855_2933.JPEG": cv2.imencode(".png", image[:, :, ::-1])[1].tobytes(),  # the one PNG of ImageNet
    }
    inner = {f"{name[:9]}.tar": tar({name: content}) for name, content in encoded.items()}
    server.files["ILSVRC2012_img_train.tar"] = tar(inner)
    validation = {f"ILSVRC2012_val_{number:08d}.JPEG": encoded["n01440764_1.JPEG"] for number in (2, 1)}
    server.files["ILSVRC2012_img_val.tar"] = tar(validation)
    register(tfds.builder_cls("imagenet2012"), server, monkeypatch)
    directory = tmp_path / "data"
    assert "image-net.org" in one_line_of(UserError, "imagenet2012", data_dir=str(directory))
    (directory / "downloads" / "manual").mkdir()
    (directory / "downloads" / "manual" / "another.zip").touch()
    line = one_line_of(UserError, "imagenet2012", data_dir=str(directory))
    assert "downloaded by hand: manual_dir should contain two files: ILSVRC2012_img_train.tar" in line

    archives = [tmp_path / "train (1).tar", tmp_path / "val (1).tar"]
    for archive, content in zip(archives, server.files.values(), strict=True):
        archive.write_bytes(content)
    line = one_line_of(UserError, "imagenet2012", data_dir=str(directory), archives=archives[:1])
    assert "manual/ILSVRC2012_img_val.tar" in line
    folder = prepare("imagenet2012", data_dir=str(directory), archives=archives)
    assert server.requests == []
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()[:2]
    names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    expected = [(decode(encoded["n01440764_1.JPEG"]), names.index(label)) for label in labels]
    assert read("imagenet2012", directory, image_size=40)["test"] == pixels(expected)
    (shard,) = folder.glob("*train.array_record*")
    stored = {}
    for record in ArrayRecordReader(str(shard)).read_all():
        features = tf_example_pb2.Example.FromString(record).features.feature
        stored[features["file_name"].bytes_list.value[0].decode()] = features["image"].bytes_list.value[0]
    assert stored["n01440764_1.JPEG"] == encoded["n01440764_1.JPEG"]
    assert stored["n02105855_2933.JPEG"].startswith(b"\xff\xd8")  # a JPEG now
    assert np.abs(decode(stored["n02105855_2933.JPEG"]).astype(int) - image).max() < 10


def test_a_download_goes_on_where_it_broke(server, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcnn.data.downloads.PAUSE", 0)
    expected = make_set("cifar10", server, monkeypatch)
    server.break_after = BLOCK + 1
    prepare("cifar10", data_dir=str(tmp_path))
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={BLOCK}-"]
    assert read("cifar10", tmp_path) == expected

    # What an earlier command has left is taken further; where it was of another file, all is fetched again.
    (download,) = (tmp_path / "downloads" / "cifar10").glob("*.tar.gz")
    content = download.read_bytes()
    for left, ranges, requests in (
        (content[:500], True, ["bytes=500-"]),
        (content[:500], False, ["bytes=500-"]),
        (b"?" * 500, True, ["bytes=500-", None]),
        (content + b"?", True, [None]),
    ):
        shutil.rmtree(tmp_path / "cifar10")
        download.rename(download.with_name(f"{download.name}.partial"))
        download.with_name(f"{download.name}.partial").write_bytes(left)
        server.requests, server.ranges = [], ranges
        prepare("cifar10", data_dir=str(tmp_path))
        assert [wanted for _, wanted in server.requests] == requests
        assert download.read_bytes() == content


def test_a_file_that_shrank_is_fetched_from_its_start(server, tmp_path):
    """And one without a checksum is never taken further."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    server.files |= {"a.bin": b"short", "b.bin": b"free"}
    a, b = server.url + "a.bin", server.url + "b.bin"
    checksum = hashlib.sha256(b"short").hexdigest()
    for size, requests in ((5, [None]), (9, ["bytes=6-", None])):
        server.requests = []
        infos = {a: UrlInfo(size=size, checksum=checksum, filename=None)}
        downloads = Downloads("shapes", folder=tmp_path, url_infos=infos, progress=lambda *_: None)
        for url in (a, b):
            resource = SimpleNamespace(url=url, relative_download_dir="")
            downloads._place(resource).unlink(missing_ok=True)
            left = downloads._place(resource).with_name(downloads._place(resource).name + ".partial")
            left.parent.mkdir(exist_ok=True)
            left.write_bytes(b"longer")
        paths = downloads.download({"a": a, "several": [b, b]})
        assert paths["a"].read_bytes() == b"short"
        assert [path.read_bytes() for path in paths["several"]] == [b"free", b"free"]
        assert [wanted for _, wanted in server.requests] == [*requests, None]
        assert downloads.downloaded_size == 9


def downloads_of(folder: Path, **infos: tuple[str, int]) -> Downloads:
    """Of files by their URL and registered size."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    known = {url: UrlInfo(size=size, checksum="0" * 64, filename=None) for url, size in infos.values()}
    return Downloads("shapes", folder=folder, url_infos=known, progress=lambda *_: None)


def test_no_more_is_taken_than_was_registered(server, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcnn.data.downloads.MOST_UNREGISTERED", 3 * BLOCK)
    server.files["a.bin"] = bytes(8 * BLOCK)
    url = server.url + "a.bin"
    written: list[int] = []
    for size, downloads in ((100, downloads_of(tmp_path, a=(url, 100))), (3 * BLOCK, downloads_of(tmp_path))):
        monkeypatch.setattr(downloads, "_progress", lambda what, done, total: written.append(done))
        with pytest.raises(RunError, match=f"more than {size:,} bytes came"):
            downloads.download(url)
        assert max(written) <= size
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        written.clear()


def test_answers_that_make_no_sense_are_said_in_a_line(server, tmp_path):
    server.files |= {"a.bin": b"", "b.bin": b"b"}
    url = server.url + "a.bin"
    with pytest.raises(RunError, match="answers 416"):  # again and again
        downloads_of(tmp_path, a=(url, 100)).download(url)
    for location, said in (("file:///etc/passwd", "No connection adapters"), ("/a.bin", "30 redirects")):
        server.location = location
        with pytest.raises(RunError, match=said):
            downloads_of(tmp_path).download(url)
    server.location, server.length = None, "many"
    assert downloads_of(tmp_path).download(server.url + "b.bin").read_bytes() == b"b"


def extracted(folder: Path, content: bytes, name: str) -> Path:
    from etils import epath
    from tensorflow_datasets.core.download import resource

    (folder / name).write_bytes(content)
    methods = {"a.tar": resource.ExtractMethod.TAR, "a.gz": resource.ExtractMethod.GZIP}
    return Path(
        downloads_of(folder).extract(resource.Resource(path=epath.Path(folder / name), extract_method=methods[name]))
    )


def test_archives_are_unpacked_within_their_folder_and_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcnn.data.downloads.LEAST_UNPACKED", 1000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in (
            ("../up", tarfile.REGTYPE, ""), ("/root", tarfile.REGTYPE, ""), ("a/../../up", tarfile.REGTYPE, ""),
            ("link", tarfile.SYMTYPE, str(tmp_path)), ("link/in", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "/etc/passwd"), ("null", tarfile.CHRTYPE, ""), ("pipe", tarfile.FIFOTYPE, ""),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    folder = extracted(tmp_path, buffer.getvalue(), "a.tar")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["link", "link/in"]
    assert (folder / "link").is_dir()
    assert not (folder / "link").is_symlink()
    with pytest.raises(RunError, match="far more than its"):
        extracted(tmp_path, gzip.compress(bytes(2 << 20)), "a.gz")
    monkeypatch.setattr("jaxcnn.data.downloads.MOST_MEMBERS", 2)
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="more than 2 files"):
        extracted(tmp_path, tar(dict.fromkeys("abc", b"")), "a.tar")


def test_an_archive_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    line = one_line_of(UserError, "mnist", data_dir=str(tmp_path), archives=[tmp_path / "pipe"])
    assert "there is no such file" in line


@pytest.mark.parametrize("name", ["../../x", "mnist/..", "mnist/../x:1.0.0", "mnist:..", "a b", "mnist\n", "/etc"])
def test_names_lead_nowhere_else(name, tmp_path):
    assert "tfds:" in one_line_of(UserError, name, data_dir=str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_an_archive_that_is_the_download_itself_is_kept(server, tmp_path, monkeypatch):
    expected = make_set("cifar10", server, monkeypatch)
    prepare("cifar10", data_dir=str(tmp_path))
    (download,) = (tmp_path / "downloads" / "cifar10").glob("*.tar.gz")
    shutil.rmtree(tmp_path / "cifar10")
    prepare("cifar10", data_dir=str(tmp_path), archives=[download])
    assert download.is_file()
    assert not download.is_symlink()
    assert len(server.requests) == 1
    assert read("cifar10", tmp_path) == expected


def test_archives_downloaded_by_hand_are_known_by_their_content(server, tmp_path, monkeypatch):
    expected = make_set("mnist", server, monkeypatch)
    server.status = 503
    archives = [tmp_path / f"download ({number})" for number in range(4)]
    for archive, content in zip(archives, server.files.values(), strict=True):
        archive.write_bytes(content)
    for name, complaint in (
        ("notes.txt", "none of the files that make mnist: t10k-images"),
        ("train-images-idx3-ubyte.gz", "when TFDS registered it"),
        ("absent.gz", "there is no such file"),
    ):
        if name != "absent.gz":
            (tmp_path / name).write_bytes(b"half of it")
        assert complaint in one_line_of(UserError, "mnist", data_dir=str(tmp_path / "data"), archives=[tmp_path / name])
    prepare("mnist", data_dir=str(tmp_path / "data"), archives=archives)
    assert read("mnist", tmp_path / "data") == expected
    assert server.requests == []


def one_line_of(error: type[Exception], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(error) as raised:
        prepare(*arguments, **keywords)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_wrong_is_said_in_a_line(server, tmp_path, monkeypatch):
    directory = str(tmp_path / "data")
    assert "did you mean 'cifar10'" in one_line_of(UserError, "cifar1O", data_dir=directory)
    assert "did you mean '160px-v2'" in one_line_of(UserError, "imagenette/160px-v", data_dir=directory)
    assert "has no configs" in one_line_of(UserError, "mnist/big", data_dir=directory)
    assert "1.0.0" in one_line_of(UserError, "mnist:1.0.0", data_dir=directory)
    assert "no image and no text with a class label" in one_line_of(UserError, "tiny_shakespeare", data_dir=directory)
    line = one_line_of(UserError, "dmlab", data_dir=directory)
    assert "tf.data" in line
    assert f"tfds.builder('dmlab', data_dir='{directory}', file_format='array_record')" in line
    assert "Apache Beam" in one_line_of(UserError, "bigearthnet", data_dir=directory)

    make_set("cifar10", server, monkeypatch)
    archive = server.files.pop("cifar-10-binary.tar.gz")
    line = one_line_of(RunError, "cifar10", data_dir=directory)
    assert "404 Not Found" in line
    assert "--archive" in line
    server.files["cifar-10-binary.tar.gz"] = archive[:-1] + b"?"
    line = one_line_of(RunError, "cifar10", data_dir=directory)
    assert "is not what TFDS registered" in line
    assert not list(Path(directory, "downloads", "cifar10").iterdir())
    with monkeypatch.context() as patch:
        server.files["cifar-10-binary.tar.gz"] = gzip.compress(
            tar({"cifar-10-batches-bin/batches.meta.txt": b"\n".join(CIFAR10_CLASSES)})
        )
        register(sys.modules["tensorflow_datasets.image_classification.cifar"].Cifar10, server, patch)
        line = one_line_of(RunError, "cifar10", data_dir=directory)
    assert re.search(r"there is no .*data_batch_1\.bin.* remove .*downloads/cifar10 and run this again", line)
    server.files["cifar-10-binary.tar.gz"] = archive
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * len(archive) - 1))
    assert "free some" in one_line_of(RunError, "cifar10", data_dir=directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * len(archive)))
    with prepare_module._alone("tfds:cifar10", Path(directory, "downloads", "cifar10.lock")):
        assert "by another process" in one_line_of(UserError, "cifar10", data_dir=directory)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("jaxcnn.data.without_tensorflow.cv2.imencode", full)
        assert "is full" in one_line_of(RunError, "cifar10", data_dir=directory)
    assert prepared_folders(Path(directory)) == []
    assert [path.name for path in Path(directory, "cifar10").iterdir()] == []
    prepare("cifar10", data_dir=directory)  # nothing of all this stands in the way
    server.close()
    shutil.rmtree(directory)
    assert "cannot download" in one_line_of(RunError, "cifar10", data_dir=directory)
    Path(directory).joinpath("file").touch()
    assert "cannot write to" in one_line_of(UserError, "cifar10", data_dir=f"{directory}/file")


def test_killed_at_any_stage_it_leaves_no_half_set_and_starts_again(server, tmp_path, monkeypatch):
    expected = make_set("cifar10", server, monkeypatch)
    (tmp_path / "archive").write_bytes(server.files["cifar-10-binary.tar.gz"])
    code = "import sys; from tests.test_prepare import die_at_every_stage; die_at_every_stage(*sys.argv[1:])"
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "archive"), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["downloading", "unpacking", "generating", "writing", "modules:"]
    assert read("cifar10", tmp_path / "data") == expected
    assert [path.name for path in (tmp_path / "data" / "cifar10").iterdir()] == ["3.0.2"]
    leftovers = [path for path in (tmp_path / "data").rglob("*") if "partial" in path.name or "incomplete" in path.name]
    assert leftovers == []


def die_at_every_stage(archive: str, data_dir: str) -> None:
    """In a process of its own: forks children that kill themselves midway, then prepares; prints what it saw."""
    import tensorflow_datasets  # noqa: F401  once, for all the children

    patch = pytest.MonkeyPatch()
    server = Server()
    make_set("cifar10", server, patch)
    assert server.files["cifar-10-binary.tar.gz"] == Path(archive).read_bytes()
    patch.setattr("jaxcnn.data.downloads.BLOCK", 5_000)  # several blocks
    for stage in ("downloading", "unpacking", "generating", "writing"):
        child = os.fork()
        if child == 0:

            def kill(what: str, done: int, total: int, stage: str = stage) -> None:
                if what.startswith(stage) and (done > 0 or total == 0 or stage == "writing"):
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                prepare("cifar10", data_dir=data_dir, progress=kill)
            finally:
                os._exit(1)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), stage
        assert prepared_folders(Path(data_dir)) == []
        with pytest.raises(UserError, match="is not prepared"):
            open_source(DataConfig(name="tfds:cifar10", dir=data_dir))
        print(stage)
    leftovers = list(Path(data_dir, "cifar10").glob("incomplete.*"))
    assert leftovers  # the kills did hit while it was being written
    prepare("cifar10", data_dir=data_dir)
    assert [wanted for _, wanted in server.requests if wanted]  # the download went on where it had been killed
    print("modules:", *sorted({"tensorflow", "jax", "torch"} & sys.modules.keys()))


@pytest.fixture
def as_tfrecord(tmp_path) -> tuple[Path, dict[str, Pixels]]:
    """A set stored as TFRecord, framed by tensorboardX, and what it holds."""
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorboardX.record_writer import RecordWriter

    folder = write_set(tmp_path)
    expected = read("shapes", tmp_path)
    for shard in folder.glob("*array_record*"):
        writer = RecordWriter(str(shard).replace("array_record", "tfrecord"))
        for record in ArrayRecordReader(str(shard)).read_all():
            writer.write(record)
        writer.close()
        shard.unlink()
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder, expected


def test_tfrecord_is_converted(as_tfrecord, tmp_path):
    import tensorflow_datasets as tfds

    folder, expected = as_tfrecord
    kept = {path: path.read_bytes() for path in folder.glob("*tfrecord*")}
    assert prepare("shapes", data_dir=str(tmp_path)) == folder
    assert read("shapes", tmp_path) == expected
    formats = tfds.builder_from_directory(folder).info.available_file_formats()
    assert {str(each.value) for each in formats} == {"array_record", "tfrecord"}
    assert kept == {path: path.read_bytes() for path in folder.glob("*tfrecord*")}


def test_files_whose_names_do_not_tell_the_format_are_left_alone(as_tfrecord, tmp_path):
    folder, _ = as_tfrecord
    info = (folder / "dataset_info.json").read_text().replace(".{FILEFORMAT}-", ".records-")
    (folder / "dataset_info.json").write_text(info)
    for shard in folder.glob("*tfrecord*"):
        shard.rename(folder / shard.name.replace(".tfrecord-", ".records-"))
    assert "without their format" in one_line_of(UserError, "shapes", data_dir=str(tmp_path))
    assert (folder / "dataset_info.json").read_text() == info


def test_a_conversion_that_was_stopped_goes_on(as_tfrecord, tmp_path):
    folder, expected = as_tfrecord

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, progress=stop)
    with pytest.raises(UserError, match="is stored as tfrecord"):
        read("shapes", tmp_path)
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*array_record*")}
    assert len(done) == 2
    (folder / f".{sorted(folder.glob('*test.tfrecord*'))[1].name}.partial").write_bytes(b"of a killed one")
    convert(folder)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert read("shapes", tmp_path) == expected


def test_damaged_tfrecord_is_not_converted(as_tfrecord, tmp_path):
    folder, expected = as_tfrecord
    shard = sorted(folder.glob("*train.tfrecord*"))[1]
    whole, info = shard.read_bytes(), (folder / "dataset_info.json").read_text()
    first = 12 + len(next(read_tfrecord(shard))) + 4
    for damaged in (
        whole[:-1],
        whole[:20] + bytes([whole[20] ^ 1]) + whole[21:],
        bytes([whole[0] ^ 1]) + whole[1:],
        whole[first:],  # a record less
    ):
        shard.write_bytes(damaged)
        line = one_line_of(RunError, "shapes", data_dir=str(tmp_path))
        assert shard.name in line
        assert (folder / "dataset_info.json").read_text() == info
    shard.write_bytes(whole)
    convert(folder)
    assert read("shapes", tmp_path) == expected
    assert not list(folder.glob("*.partial"))
