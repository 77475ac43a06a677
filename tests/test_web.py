"""The page that runs a network in the browser: as a folder, and as one file, in a Chromium without a window."""

import base64
import functools
import gzip
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.export import network as networks
from jaxcnn.export import runtime
from jaxcnn.export.onnx import to_onnx
from jaxcnn.export.parity import images_of
from jaxcnn.export.web import SAMPLES, folder_of, page_of
from jaxcnn.machine import private_cache
from tests.browser import NAMES, Browser
from tests.commands import run_here
from tests.runs import small_config, train

pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")

READY = "document.documentElement?.dataset.state"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "run"
    train(small_config(), folder)
    return folder


@pytest.fixture(scope="module")
def runtime_folder():
    """onnxruntime-web's files, of $JAXCNN_ONNXRUNTIME_WEB or of the user's own cache: tests download nothing."""
    kept = Path("~/.cache/jaxcnn").expanduser() / f"onnxruntime-web-{runtime.VERSION}"
    folder = Path(os.environ.get("JAXCNN_ONNXRUNTIME_WEB", kept))
    if not all((folder / name).is_file() for name in runtime.FILES):
        pytest.skip(f"no onnxruntime-web in {folder}; set JAXCNN_ONNXRUNTIME_WEB to npm's dist folder of it")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not any(map(shutil.which, NAMES)):
        pytest.skip("no Chromium to look at the page with")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def served(tmp_path):
    """(the address of tmp_path's files; what was asked for; what ends the server)."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *values):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def end():
        server.shutdown()
        server.server_close()

    yield f"http://127.0.0.1:{server.server_port}", asked, end
    end()


def page_logits(browser, count):
    found = browser.value(
        f"(async () => {{ const all = []; for (let i = 0; i < {count}; i++) all.push(Array.from(await "
        "network.ofSample(i))); return all; })()"
    )  # fmt: skip
    return np.array(found, np.float32)


def our_logits(folder):
    """Those of the samples that a page offers."""
    images = images_of(str(folder), 128).images
    places = np.unique(np.linspace(0, len(images) - 1, SAMPLES).astype(int))
    return networks.load(str(folder)).logits(images[places])


def assert_fits(browser):
    """On a phone nothing is wider than the window; light and dark differ; each button can be reached and named."""
    browser.look(390, 844)
    assert browser.value("document.documentElement.scrollWidth") <= 390
    small = browser.value(
        "[...document.querySelectorAll('#buttons button')].every(b => b.hidden || b.offsetHeight >= 44)"
    )
    assert small
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.value(paper)
    browser.look(1200, 800, dark=True)
    assert browser.value(paper) != light
    assert browser.value("[...document.images].every(image => image.alt && image.naturalWidth)")


def test_a_folder(trained, runtime_folder, browser, served, tmp_path):
    address, asked, end = served
    code, output, errors = run_here(
        "--workdir", trained, "--to=web", tmp_path / "site", f"--runtime={runtime_folder}", module="export.__main__"
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "100.00 % same predictions" in output
    browser.open(f"{address}/site/", until=f"{READY} === 'ready'")
    np.testing.assert_allclose(page_logits(browser, SAMPLES), our_logits(trained), atol=1e-4)
    assert_fits(browser)
    assert all(path.startswith("/site/") for path in asked)
    assert browser.faults() == []

    draw(browser)
    answer = browser.value("document.querySelector('#answers .name').textContent")
    assert answer in [str(digit) for digit in range(10)]

    give(browser)

    browser.wait("navigator.serviceWorker.controller", seconds=30)
    browser.wait("(async () => (await (await caches.open((await caches.keys())[0])).keys()).length > 25)()", seconds=30)
    end()  # no network any more
    browser.open("about:blank")
    browser.open(f"{address}/site/", until=f"{READY} === 'ready'")
    assert page_logits(browser, 2).shape == (2, 10)


ANSWERED = "Number(document.body.dataset.answered || 0)"
FILE = """
const transfer = new DataTransfer();
const canvas = document.createElement("canvas");
canvas.width = 300; canvas.height = 200;
const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
transfer.items.add(new File([blob], "black.png", { type: "image/png" }));
"""
GIVEN = {
    "dropped": "document.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, cancelable: true }));",
    "pasted": "document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer }));",
    "chosen": "file.files = transfer.files; file.dispatchEvent(new Event('change'));",
}


def give(browser):
    """An image that is dropped, pasted, chosen; of the camera; a sample by the keyboard; and what is no image."""
    for what in GIVEN.values():
        before = browser.value(ANSWERED)
        browser.value(f"(async () => {{ {FILE} {what} }})()")
        browser.wait(f"{ANSWERED} > {before}")
    assert browser.value("seen.width") == 8
    before = browser.value(ANSWERED)
    browser.value("camera.click()")
    browser.wait(f"{ANSWERED} > {before} + 2")  # it goes on
    assert browser.value("camera.textContent") == "Stop camera"
    browser.value("document.querySelector('#samples button').focus()")
    browser.ask(
        "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
    )
    browser.wait("camera.textContent === 'Camera'")
    browser.value(
        "(() => { const t = new DataTransfer(); t.items.add(new File(['x'], 'a.png', { type: 'image/png' })); "
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: t, cancelable: true })); })()"
    )
    browser.wait("document.getElementById('status').textContent.startsWith('This is no image')")


def draw(browser):
    """A one, with the mouse."""
    before = browser.value(ANSWERED)
    browser.look(390, 844)
    box = browser.value("(() => { const b = pad.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()")
    x, y, width, height = box
    mouse = functools.partial(browser.ask, "Input.dispatchMouseEvent", button="left", clickCount=1)
    mouse(type="mousePressed", x=x + width / 2, y=y + height * 0.2)
    for step in range(3, 9):
        mouse(type="mouseMoved", x=x + width / 2, y=y + height * step / 10)
    mouse(type="mouseReleased", x=x + width / 2, y=y + height * 0.8)
    browser.wait(f"{ANSWERED} > {before}")


def test_one_file_opens_from_disk(trained, runtime_folder, browser, tmp_path):
    file = tmp_path / "digits.html"
    code, _, errors = run_here(
        "--workdir", trained, "--to=page", file, f"--runtime={runtime_folder}", module="export.__main__"
    )  # fmt: skip
    assert (code, errors) == (0, "")
    browser.events.clear()
    browser.open(file.as_uri(), until=f"{READY} === 'ready'")
    np.testing.assert_allclose(page_logits(browser, SAMPLES), our_logits(trained), atol=1e-4)
    assert_fits(browser)
    assert browser.faults() == []
    fetched = [
        each["params"]["request"]["url"] for each in browser.events if each["method"] == "Network.requestWillBeSent"
    ]
    assert not [url for url in fetched if url.startswith(("http:", "https:"))]


def test_samples_are_not_cropped_again(trained, runtime_folder, browser, tmp_path):
    """Of a network whose images were resized to more than it sees, as ImageNet's published weights."""
    network, images = networks.load(str(trained)), images_of(str(trained), 128)
    network.facts["resized"] = 12
    model = to_onnx(network.function, network.variables, network.example).SerializeToString()
    file = tmp_path / "page.html"
    file.write_bytes(page_of(network, model, images, runtime.runtime_files(str(runtime_folder))))
    browser.open(file.as_uri(), until=f"{READY} === 'ready'")
    np.testing.assert_allclose(page_logits(browser, 5), our_logits(trained)[:5], atol=1e-4)


def test_a_file_of_others(trained, tmp_path, monkeypatch):
    """Such as an int8 one: what it differs by is told, and is no fault; what does not run is."""
    monkeypatch.setattr(runtime, "runtime_files", lambda *_, **__: dict.fromkeys(runtime.FILES, b""))
    model, page = tmp_path / "model.onnx", tmp_path / "page.html"
    options = ["--workdir", trained, "--to=page", page, "--onnx", model]
    assert run_here("--workdir", trained, "--to=onnx", model, "--weights=raw", module="export.__main__")[0] == 0
    code, output, errors = run_here(*options, module="export.__main__")
    assert (code, errors) == (0, "")
    assert "onnxruntime, of that file, against the run: largest difference" in output
    packed = json.loads(page.read_text().partition("window.embedded = ")[2].partition(";</script>")[0])
    assert gzip.decompress(base64.b64decode(packed["model.onnx"])) == model.read_bytes()
    model.write_bytes(b"no model")
    code, _, errors = run_here(*options, "--force", module="export.__main__")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "does not run on the run's images" in errors


def test_what_names_hold_is_text(trained):
    network = networks.load(str(trained))
    network.facts["data"] = "<script>alert(1)</script>{scripts}"
    network.facts["class_names"][0] = "</script><b>"
    files = folder_of(network, b"", images_of(str(trained), 128), dict.fromkeys(runtime.FILES, b""))
    page = files["index.html"].decode()
    assert "<script>alert" not in page
    assert page.count("page.js") == 1
    facts = json.loads(files["facts.json"])
    assert facts["class_names"][0] == "</script><b>"
    assert len(facts["samples"]) == SAMPLES
    assert all(files[each["file"]].startswith(b"\x89PNG") for each in facts["samples"])
    kept = json.loads(files["service-worker.js"].decode().partition("FILES = ")[2].partition(";")[0])
    assert set(kept) == (set(files) | {"./"}) - {"service-worker.js"}


def test_the_runtime_is_the_pinned_one(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has not the files"):
        runtime.runtime_files(str(tmp_path))
    for name in runtime.FILES:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(UserError, match="is not that of onnxruntime-web"):
        runtime.runtime_files(str(tmp_path))
    # npm's integrity of the package: registry.npmjs.org/onnxruntime-web/1.30.0
    assert base64.b64encode(bytes.fromhex(runtime.SHA512)).startswith(b"q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZ")


def test_what_comes_is_checked_and_kept(tmp_path, monkeypatch):
    """A registry of the test's own."""
    import hashlib
    import io
    import tarfile

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in runtime.FILES:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    (tmp_path / "package.tgz").write_bytes(content.getvalue())
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *values):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "URL", f"http://127.0.0.1:{server.server_port}/package.tgz")
    try:
        with pytest.raises(Exception, match="its SHA-512 is another"):
            runtime.runtime_files()
        monkeypatch.setattr(runtime, "SHA512", hashlib.sha512(content.getvalue()).hexdigest())
        digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in runtime.FILES}
        monkeypatch.setattr(runtime, "FILES", digests)
        for _ in range(2):
            assert runtime.runtime_files() == {name: name.encode() for name in runtime.FILES}
        assert len(asked) == 2  # the wrong one, and once the right one
        cache = private_cache(f"onnxruntime-web-{runtime.VERSION}")
        assert cache is not None
        (cache / "ort.wasm.min.js").write_bytes(b"changed")
        assert runtime.runtime_files()["ort.wasm.min.js"] == b"ort.wasm.min.js"
        assert len(asked) == 3
    finally:
        server.shutdown()
        server.server_close()
