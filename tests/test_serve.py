"""python -m jaxcnn.serve: answers as predict's, what is refused and how, overload, and the real process."""

import base64
import contextlib
import io
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="serving needs it: pip install 'jaxcnn[serve]'")
pytest.importorskip("uvicorn", reason="serving needs it: pip install 'jaxcnn[serve]'")
pytest.importorskip("python_multipart", reason="serving needs it: pip install 'jaxcnn[serve]'")
pytest.importorskip("httpx", reason="the tests of serving need it: pip install httpx")

import httpx
from fastapi.testclient import TestClient

from jaxcnn import load, serve
from jaxcnn.config import Config, ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.layers.conv import conv_xla
from jaxcnn.models import MODELS
from jaxcnn.results.trained import TrainedModel
from jaxcnn.serving.app import EXPLANATION, PROBABILITIES, Limits, make_app
from jaxcnn.serving.batching import Batcher, ClosedError, Compiled, FullError, LateError
from tests.commands import run_here, start
from tests.nasty_images import _png_header, damaged_images
from tests.runs import begin, small_config

SHAPE, CLASSES = (12, 12, 3), ("cat", "<b>dog</b>", "größe")


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    module = MODELS["cnn"](num_classes=3)
    like = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), jnp.zeros((1, *SHAPE)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.1).astype(np.float32), like["params"])
    return TrainedModel(
        module=module, variables={"params": params, "batch_stats": {}}, class_names=CLASSES, image_shape=SHAPE,
        mean=(0.5,) * 3, std=(0.5,) * 3, config=Config(model=ModelConfig(name="cnn")), source="a run, step 3",
    )  # fmt: skip


def batcher_of(model: TrainedModel, *, capacity: int = 16) -> Batcher:
    calls = {
        PROBABILITIES: Compiled(model.probabilities_call(), [1, 4]),
        EXPLANATION: Compiled(model.explain_call(), [1]),
    }
    return Batcher(calls, SHAPE, capacity=capacity)


@contextlib.contextmanager
def client_of(model: TrainedModel, batcher: Batcher, **limits: Any) -> Iterator[TestClient]:
    with TestClient(make_app(model, batcher, Limits(**limits), explains=True)) as client:
        deadline = time.monotonic() + 60
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield client


@pytest.fixture(scope="module")
def client(model) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.layers.conv._conv", lambda x, kernel, window, *_: conv_xla(x, kernel, window))
        with client_of(model, batcher_of(model), num_bytes=200_000, num_pixels=10_000, num_images=5) as client:
            yield client


def file_of(seed: int = 0, size: tuple[int, int] = (15, 20)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format="PNG")
    return target.getvalue()


def sent(*encoded: bytes) -> dict[str, Any]:
    return {"files": [("images", (f"{number}.png", each)) for number, each in enumerate(encoded)]}


def as_json(*encoded: bytes) -> dict[str, Any]:
    return {"json": {"images": [base64.b64encode(each).decode() for each in encoded]}}


# ---- answers


@pytest.mark.parametrize("form", [sent, as_json])
def test_answers_are_predicts(client, model, form):
    files = [file_of(seed) for seed in range(5)]
    answer = client.post("/predict?top_k=2", **form(*files))
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert [each["image"] for each in found] == [f"{n}.png" if form is sent else f"image {n}" for n in range(5)]
    expected = model.classify(files, top_k=2)
    for each, classes in zip(found, expected, strict=True):
        assert [one["name"] for one in each["classes"]] == [name for name, _ in classes]
        np.testing.assert_allclose([one["probability"] for one in each["classes"]], [p for _, p in classes], rtol=1e-4)
        assert "explanation" not in each
    assert answer.json()["model"] == "cnn"


def test_an_explanation_is_a_picture(client):
    answer = client.post("/predict?explain=true", **sent(file_of()))
    kind, _, encoded = answer.json()["predictions"][0]["explanation"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (228, 228)


def test_a_data_url_is_base64_too(client):
    url = "data:image/png;base64," + base64.b64encode(file_of()).decode()
    assert client.post("/predict", json={"images": [url]}).status_code == 200


# ---- what is refused

BOMB = _png_header(10_000, 10_000)
DAMAGED = {name: encoded for name, (encoded, _, _) in damaged_images().items()}


@pytest.mark.parametrize(
    ("request_of", "status", "said"),
    [
        (sent(BOMB), 413, "0.png: 10,000 x 10,000 pixels; an image has at most 10,000"),
        (as_json(BOMB), 413, "image 0: 10,000 x 10,000 pixels"),
        (sent(_png_header(40_000, 40_000)), 422, "more than 178,956,970 pixels"),
        (sent(bytes(300_000)), 413, "at most 200,000 bytes"),
        (sent(*[file_of()] * 6), 413, "6 images; a request has at most 5"),
        (sent(*[b""] * 9), 413, "Too many files"),
        (as_json(*[file_of()] * 6), 413, "6 images"),
        (sent(), 415, "send multipart/form-data"),
        ({"data": {"images": "x"}}, 415, "send multipart/form-data"),
        ({"files": {"images": (None, "text")}}, 400, "there are no images"),
        ({"json": {"images": []}}, 400, "there are no images"),
        ({"json": {"images": [3]}}, 400, "JSON is"),
        ({"json": [1]}, 400, "JSON is"),
        ({"json": {"images": ["%%%"]}}, 400, "image 0 is no base64"),
        ({"content": b"{" * 99_000, "headers": {"content-type": "application/json"}}, 400, "JSON is"),
        ({"content": b"[" * 99_000, "headers": {"content-type": "application/json"}}, 400, "JSON is"),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "JSON is"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, ""),
        ({**sent(file_of()), "headers": {"origin": "https://elsewhere.example"}}, 403, "another origin"),
        ({**sent(file_of()), "params": {"top_k": 0}}, 422, ""),
        *((sent(encoded), 422, f"0.png: {''}") for encoded in list(DAMAGED.values())[:3]),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(client, request_of, status, said):
    answer = client.post("/predict", **request_of)
    assert answer.status_code == status, answer.text
    assert said in str(answer.json()["detail"])
    assert client.post("/predict", **sent(file_of())).status_code == 200  # it lives


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_images_are_told_in_a_line(client, name):
    answer = client.post("/predict", **sent(DAMAGED[name]))
    assert answer.status_code in (413, 422), answer.text
    assert "\n" not in answer.json()["detail"]


def test_a_body_without_a_length_is_counted(client):
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield bytes(1000)

    answer = client.post("/predict", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


# ---- beside answers


def test_the_page_runs_its_own_script_alone(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert len(re.findall("'sha256-[^']+'", policy)) == 2
    assert answer.text.count("<script>") == answer.text.count("<style>") == 1
    assert not re.search(r"""\son\w+=|style=|https?://|innerHTML""", answer.text)
    assert client.get("/model").json()["class_names"] == list(CLASSES)


def test_openapi_says_what_may_be_sent(client):
    described = client.get("/openapi.json").json()
    predict = described["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert set(predict["responses"]) >= {"200", "413", "429", "503"}
    assert {"/health", "/ready", "/metrics", "/model"} <= set(described["paths"])
    assert client.get("/docs").status_code == 404  # it would be loaded from elsewhere


def test_metrics_count(client):
    before = numbers_of(client)
    client.post("/predict", **sent(file_of(), file_of(1)))
    client.post("/predict", **sent(b""))
    client.get("/nowhere?x=1")
    found = numbers_of(client)
    changed = {name: found[name] - before.get(name, 0) for name in found if found[name] != before.get(name, 0)}
    assert changed['jaxcnn_requests_total{path="/predict",status="200"}'] == 1
    assert changed['jaxcnn_requests_total{path="/predict",status="422"}'] == 1
    assert changed['jaxcnn_requests_total{path="other",status="404"}'] == 1
    assert changed["jaxcnn_images_total"] == 2
    assert changed["jaxcnn_request_seconds_count"] == changed['jaxcnn_request_seconds_bucket{le="+Inf"}'] == 2
    assert found["jaxcnn_ready"] == 1


def numbers_of(client: Any) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


# ---- overload


class Slow:
    """A call that answers each image by its mean, once it is let."""

    def __init__(self) -> None:
        self.let, self.sizes = threading.Event(), list[int]()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.let.wait(30)
        self.sizes.append(len(images))
        return images.mean(axis=(1, 2, 3))


def image_of(level: int) -> np.ndarray:
    return np.full(SHAPE, level, np.uint8)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_waits_is_one_batch_and_each_has_its_own_answer():
    slow = Slow()
    slow.let.set()
    batcher = Batcher({"mean": Compiled(slow, [1, 4])}, SHAPE, capacity=6)
    batcher.start()
    wait_for(lambda: batcher.is_ready)
    slow.let.clear()
    first = batcher.submit("mean", [image_of(9)], seconds=30)
    wait_for(lambda: batcher.num_waiting == 0)
    others = [batcher.submit("mean", [image_of(level)], seconds=30)[0] for level in range(6)]
    with pytest.raises(FullError):
        batcher.submit("mean", [image_of(0)], seconds=30)
    others[2].cancel()
    slow.let.set()
    assert first[0].result(30) == 9
    assert [each.result(30) for each in others if not each.cancelled()] == [0, 1, 3, 4, 5]
    assert slow.sizes == [1, 4, 1, 4, 4]  # compiled for 1 and 4; the first; three of four; the last two
    assert batcher.batches == {1: 1, 4: 2}
    batcher.close()
    with pytest.raises(ClosedError):
        batcher.submit("mean", [image_of(0)], seconds=30)


def test_what_is_late_is_not_computed_and_what_fails_is_told():
    slow = Slow()
    slow.let.set()
    failing = Batcher({"mean": Compiled(slow, [1])}, SHAPE, capacity=6)
    failing.start()
    wait_for(lambda: failing.is_ready)
    (late,) = failing.submit("mean", [image_of(0)], seconds=-1)
    with pytest.raises(LateError):
        late.result(30)
    (wrong,) = failing.submit("mean", [np.zeros((1, 2, 3), np.uint8)], seconds=30)
    with pytest.raises(ValueError):  # noqa: PT011
        wrong.result(30)
    assert failing.submit("mean", [image_of(7)], seconds=30)[0].result(30) == 7  # it lives
    failing.close()
    assert slow.sizes == [1, 1]


def test_a_call_that_cannot_be_compiled_is_told():
    failed = threading.Event()

    def call(images: np.ndarray) -> Any:
        raise RuntimeError("no memory")

    batcher = Batcher({"x": Compiled(call, [1])}, SHAPE, capacity=6, on_failure=failed.set)
    batcher.start()
    assert failed.wait(30)
    assert str(batcher.failure) == "no memory"
    assert not batcher.is_ready


def test_overload_is_answered_and_nothing_is_lost(model):
    """Forty at once, of which eight may be inside: each is answered, by 200 or 429; then one more is."""
    slow = Slow()
    slow.let.set()
    call: Any = lambda images: np.tile(np.array([0.2, 0.3, 0.5], np.float32), (len(slow(images)), 1))
    batcher = Batcher({PROBABILITIES: Compiled(call, [1, 4])}, SHAPE, capacity=16)
    with client_of(model, batcher, num_requests=8) as client:
        slow.let.clear()
        with ThreadPoolExecutor(40) as threads:
            running = [threads.submit(client.post, "/predict", **sent(file_of())) for _ in range(40)]
            wait_for(lambda: sum(each.done() for each in running) >= 32)
            slow.let.set()
            answers = [each.result(60) for each in running]
        codes = [each.status_code for each in answers]
        assert sorted(codes) == [200] * 8 + [429] * 32
        assert {each.headers.get("retry-after") for each in answers} == {None, "1"}
        assert client.post("/predict", **sent(file_of())).status_code == 200


def test_without_an_answer_in_time_it_is_503(model):
    slow = Slow()
    slow.let.set()
    batcher = Batcher({PROBABILITIES: Compiled(slow, [1])}, SHAPE, capacity=16)
    with client_of(model, batcher, seconds=0.2) as client:
        slow.let.clear()
        answer = client.post("/predict", **sent(file_of()))
        assert (answer.status_code, answer.json()["detail"]) == (503, "no answer within 0.2 seconds")
        assert client.get("/health").status_code == 200
        slow.let.set()


def test_it_is_not_ready_before_it_is_compiled(model):
    slow = Slow()
    batcher = Batcher({PROBABILITIES: Compiled(slow, [1])}, SHAPE, capacity=16)
    with TestClient(make_app(model, batcher, Limits(), explains=False)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        answer = client.post("/predict", **sent(file_of()))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        slow.let.set()
        wait_for(lambda: client.get("/ready").status_code == 200)
        assert "no map" in client.post("/predict?explain=true", **sent(file_of())).json()["detail"]


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("serve") / "run"
    begin(small_config(model__name="cnn", num_devices=1), folder)
    return folder


def test_the_process_answers_and_ends_by_a_signal(trained):
    process = start(f"--workdir={trained}", "--port=0", "--batch_size=2", module="serve")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(re.search(r" on http://127\.0\.0\.1:(\d+);", line)[1])  # type: ignore[index]
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        code = None
        while code != 200:
            assert time.monotonic() < deadline
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                code = httpx.get(f"{url}/ready").status_code
            time.sleep(0.1)
        grey = io.BytesIO()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(grey, format="PNG")
        with httpx.Client(base_url=url) as kept:  # no packet waits for another's acknowledgement: 40 ms
            taken_by = []
            for _ in range(20):
                begun = time.perf_counter()
                kept.get("/health")
                taken_by.append(time.perf_counter() - begun)
        assert min(taken_by) < 0.03
        answer = httpx.post(f"{url}/predict?explain=true", files={"images": grey.getvalue()}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["predictions"][0]["classes"]) == 5
        with socket.create_connection(("127.0.0.1", port)) as raw:  # no HTTP
            raw.sendall(b"\0" * 1000)
            assert raw.recv(1000).startswith(b"HTTP/1.1 400")
        big = httpx.post(f"{url}/predict", files={"images": bytes(17_000_000)}, timeout=60)
        assert big.status_code == 413
        taken = start(f"--workdir={trained}", f"--port={port}", module="serve")
        assert taken.wait(60) == 2
        assert taken.stderr is not None
        assert re.fullmatch(r"jaxcnn: --host=127.0.0.1 --port=\d+ cannot be served on: .*\n", taken.stderr.read())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run given; pass --workdir"),
        (["--workdir=/nowhere"], "holds no run"),
        (["--workdir=x", "--init_from=y"], "give one of them"),
        (["--workdir=x", "--host=no.such.host.invalid"], "cannot be served on"),
        (["--workdir=x", "--port=70000"], "port"),
        (["--workdir=x", "--batch_size=0"], "batch_size"),
        (["--workdir=x", "image.png"], "unexpected argument 'image.png'"),
        (["--workdir=x", "--port=0", "--tta=flap"], "did you mean 'flip'"),
    ],
)
def test_wrong_commands_are_answered_in_a_line(arguments, message, monkeypatch):
    monkeypatch.setattr("jaxcnn.training.parallel.set_up", lambda *arguments, **keywords: None)
    with pytest.raises(UserError, match=message) as raised:
        serve.main(["serve", *(["--port=0"] if "--port" not in str(arguments) else []), *arguments], 0.0)
    assert "\n" not in str(raised.value)


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UserError, match=r"serving needs fastapi, .* pip install 'jaxcnn\[serve\]'"):
        serve.main(["serve", "--workdir=x"], 0.0)


# ---- a file's network


def test_a_file_answers_as_its_run(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    from jaxcnn.serving.onnx_file import open_onnx

    begin(small_config(), tmp_path / "run")
    of, out = ["--workdir", tmp_path / "run", "--to=onnx"], tmp_path / "model.onnx"
    assert run_here(*of, out, module="export.__main__")[0] == 0
    file, run = open_onnx(str(out)), load(str(tmp_path / "run"))
    assert (file.class_names, file.image_shape, file.name) == (run.class_names, run.image_shape, "tiny")
    images = np.random.default_rng(0).integers(0, 256, (3, *run.image_shape)).astype(np.uint8)
    probabilities = file.probabilities_call()(images)
    np.testing.assert_allclose(probabilities, run.predict(images, tta="none"), rtol=1e-4, atol=1e-6)
    assert file.likeliest(probabilities[0], 2) == run.likeliest(probabilities[0], 2)
    with pytest.raises(UserError, match="views are averaged by a run's network"):
        file.probabilities_call("flip")
    assert run_here(*of, tmp_path / "raw.onnx", "--raw", module="export.__main__")[0] == 0
    (tmp_path / "text.onnx").write_text("no model")
    for name, message in (
        ("raw.onnx", "does not say what"), ("text.onnx", "is no ONNX file that runs"), ("none.onnx", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as fault:
            open_onnx(str(tmp_path / name))
        assert "\n" not in str(fault.value)


def test_a_file_and_a_run_are_two_networks():
    code, _, errors = run_here("--onnx=a.onnx", "--workdir=b", module="serve")
    assert (code, errors) == (2, "jaxcnn: --onnx and --workdir are both networks; give one of them\n")
