"""A run whose folder is in a bucket: the real commands, against a bucket on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from tests import commands
from tests.commands import ROOT
from tests.fake_gcs import FakeGcs

pytest.importorskip("gcsfs")

COMMAND = [
    "--config=experiments/digits.py", "--config.num_steps=60", "--config.model.name=mlp", "--config.log_every_steps=7",
]  # fmt: skip
QUIET = [*COMMAND, "--config.tensorboard=false"]
OFTEN = [*QUIET, "--config.checkpoint.every_steps=15"]
LOG = re.compile(r"(?m)^[IWE]\d{4} \S+ +\d+ google_auth_provider\.cc:.*\n")  # TensorStore's, which nothing silences


class Bucket(FakeGcs):
    """The bucket, and commands that find it, and nothing else: no credentials, proxy or metadata server."""

    def __init__(self, nothing: Path):
        super().__init__(page=20)  # so that listings come in pages
        credentials = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_API_USE_CLIENT_CERTIFICATE", "EPATH_USE_TF")
        self.environment = {name: value for name, value in os.environ.items() if name not in credentials} | {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore's
            "GCE_METADATA_HOST": "127.0.0.1:9",
            "GCE_METADATA_ROOT": "127.0.0.1:9",
            "NO_GCE_CHECK": "true",
            "CLOUDSDK_CONFIG": str(nothing),
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks by gRPC, which knows no emulator
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "COLUMNS": "120",
            "XLA_FLAGS": commands.environment()["XLA_FLAGS"],
        }

    def start(self, *arguments: object, module: str = "main") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", f"jaxcnn.{module}", *map(str, arguments)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, module: str = "main") -> tuple[int, str, str]:
        return ended(self.start(*arguments, module=module))

    def run_here(self, *arguments: object, module: str = "main") -> tuple[int, str, str]:
        """In this process, which finds the bucket as theirs do; JAX has begun, and its devices are the suite's."""
        with mock.patch.dict(os.environ, self.environment, clear=True):
            return commands.run_here(*arguments, module=module)

    def generations(self, folder: str) -> dict[str, int]:
        """The names of the objects in a folder, and the generation of each."""
        with self.lock:
            return {n[len(folder) + 1 :]: o.generation for n, o in self.objects.items() if n.startswith(f"{folder}/")}

    def steps(self, folder: str) -> list[int]:
        """Of the checkpoints that are finished."""
        found = (re.fullmatch(r"checkpoints/(\d+)/commit_success.txt", name) for name in self.generations(folder))
        return sorted(int(match[1]) for match in found if match)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, LOG.sub("", errors)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with Bucket(tmp_path_factory.mktemp("nothing")) as bucket:
        yield bucket
        assert bucket.problems == []


@pytest.fixture(scope="module")
def pair(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The folder in the bucket of a run that nothing disturbs, and metrics.jsonl of the same run in a local folder."""
    local = tmp_path_factory.mktemp("runs") / "digits"
    processes = bucket.start(*QUIET, f"--workdir={local}"), bucket.start(*COMMAND, "--workdir=gs://bucket/runs/digits")
    (code, _, errors), (remote_code, output, remote_errors) = map(ended, processes)
    assert (code, errors) == (remote_code, remote_errors) == (0, "")
    assert "everything is in gs://bucket/runs/digits" in output
    return "runs/digits", (local / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(pair: tuple[str, bytes]) -> str:
    return pair[0]


@pytest.fixture(scope="module")
def metrics(pair: tuple[str, bytes]) -> bytes:
    return pair[1]


@pytest.fixture(scope="module")
def stopped(bucket: Bucket) -> str:
    """The folder of a run that SIGTERM ended when it had two checkpoints."""
    process = bucket.start(*OFTEN, "--workdir=gs://bucket/runs/stopped")
    deadline = time.monotonic() + 120
    while len(bucket.steps("runs/stopped")) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 75, errors
    found = re.fullmatch(r"jaxcnn: SIGTERM: saved at step (\d+); the same command goes on from there\n", errors)
    assert found, errors
    assert int(found[1]) == bucket.steps("runs/stopped")[-1] < 60
    return "runs/stopped"


@pytest.fixture(scope="module")
def resumed(bucket: Bucket, stopped: str) -> dict[str, tuple[int, str, str]]:
    """How the stopped run went on, in two copies of its folder: one as it was, in one the newest arrays damaged."""
    folders = ("runs/resumed", "runs/damaged")
    for folder in folders:
        for name in bucket.generations(stopped):
            bucket.copy(f"{stopped}/{name}", f"{folder}/{name}", {}, move=False)
    arrays = f"runs/damaged/checkpoints/{bucket.steps(stopped)[-1]}/arrays"
    each = [bucket.get(f"{arrays}/{name}") for name in bucket.generations(arrays)]
    largest = max(each, key=lambda stored: len(stored.data))
    middle = len(largest.data) // 2
    flipped = largest.data[:middle] + bytes([largest.data[middle] ^ 1]) + largest.data[middle + 1 :]
    bucket.put(largest.name, flipped)
    processes = {folder: bucket.start(*OFTEN, f"--workdir=gs://bucket/{folder}") for folder in folders}
    return {folder: ended(process) for folder, process in processes.items()}


def test_a_run_in_a_bucket_is_the_run_in_a_folder(bucket: Bucket, whole: str, metrics: bytes) -> None:
    names = bucket.generations(whole).keys()
    assert names >= {"config.json", "metrics.jsonl", "timing.jsonl", "summary.json"}
    assert {name.split("/")[2] for name in names if name.startswith("checkpoints/60/")} >= {"arrays", "json", "metrics"}
    assert any(re.match("tensorboard/train/events", name) for name in names)
    assert any(re.match("tensorboard/validation/events", name) for name in names)
    assert not [name for name in names if "partial" in name or "tmp" in name]
    assert bucket.get(f"{whole}/metrics.jsonl").data == metrics


def test_finished_it_prints_its_summary_and_changes_nothing(bucket: Bucket, whole: str) -> None:
    before = bucket.generations(whole)
    code, output, errors = bucket.run_here(*COMMAND, f"--workdir=gs://bucket/{whole}")
    assert (code, errors) == (0, "")
    assert "finished" in output
    assert re.search(r"│ test +│ +360 │", output)
    assert bucket.generations(whole) == before


def test_it_is_evaluated_where_it_is(bucket: Bucket, whole: str) -> None:
    before = bucket.generations(whole)
    code, output, errors = bucket.run(f"--workdir=gs://bucket/{whole}", module="evaluate")
    assert (code, errors) == (0, "")
    found, summary = json.loads(output.splitlines()[-1]), json.loads(bucket.get(f"{whole}/summary.json").data)
    assert found["accuracy"] == summary["splits"]["test"]["accuracy"]
    after = bucket.generations(whole)
    assert {after.pop(name) is not None for name in ("evaluation.json", "predictions.csv")} == {True}
    assert after == before
    written = json.loads(bucket.get(f"{whole}/evaluation.json").data)
    assert written["scores"]["accuracy"] == found["accuracy"]


def test_other_settings_are_refused(bucket: Bucket, whole: str) -> None:
    before = bucket.generations(whole)
    code, _, errors = bucket.run_here(*COMMAND, "--config.seed=5", f"--workdir=gs://bucket/{whole}")
    assert code == 2
    assert re.fullmatch(r"jaxcnn: .*seed \(0 -> 5\).*\n", errors)
    assert bucket.generations(whole) == before


def test_stopped_by_a_signal_it_goes_on(
    bucket: Bucket, stopped: str, resumed: dict[str, tuple[int, str, str]], metrics: bytes
) -> None:
    code, output, errors = resumed["runs/resumed"]
    assert (code, errors) == (0, "")
    assert f"resuming at step {bucket.steps(stopped)[-1]} of 60" in output
    assert bucket.get("runs/resumed/metrics.jsonl").data == metrics


def test_a_damaged_checkpoint_is_set_aside(
    bucket: Bucket, stopped: str, resumed: dict[str, tuple[int, str, str]], metrics: bytes
) -> None:
    before, step = bucket.steps(stopped)[-2:]
    code, output, errors = resumed["runs/damaged"]
    assert code == 0, errors
    assert re.fullmatch(rf"jaxcnn: checkpoint \S+/{step} is damaged .*, using the one before it\n", errors), errors
    assert f"resuming at step {before} of 60" in output
    assert bucket.get("runs/damaged/metrics.jsonl").data == metrics
    aside = {name.partition("/")[2] for name in bucket.generations("runs/damaged/damaged_checkpoints")}
    assert aside >= bucket.generations(f"{stopped}/checkpoints/{step}").keys()


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("nowhere", "main", "cannot be written"),
        ("private", "main", "cannot be read: Anonymous caller does not have"),
        ("nowhere", "evaluate", "holds no run"),
        ("private", "evaluate", "cannot be read"),
    ],
)
def test_a_bucket_that_is_not_ours(bucket: Bucket, name: str, module: str, message: str) -> None:
    command = bucket.run if (name, module) == ("private", "main") else bucket.run_here
    code, _, errors = command(*(COMMAND if module == "main" else ()), f"--workdir=gs://{name}/run", module=module)
    assert code == 2, errors
    assert re.fullmatch(rf"jaxcnn: .*{message}.*\n", errors), errors


# ---- The bucket is only worth what it has in common with the real one.


def ask(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with build_opener(ProxyHandler({})).open(Request(url, data, headers, method=method)) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def test_the_bucket_keeps_the_preconditions() -> None:
    with FakeGcs() as bucket:
        upload = f"{bucket.url}/upload/storage/v1/b/bucket/o?uploadType=media&name=a%2Fb"
        place = f"{bucket.url}/storage/v1/b/bucket/o/a%2Fb"
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: ask(f"{upload}&ifGenerationMatch=0", "POST", bytes([n])), range(16)))
        assert sorted(code for code, _ in answers) == [200] + [412] * 15, "one creates it, the others come late"
        first = json.loads(next(body for code, body in answers if code == 200))["generation"]
        assert ask(f"{place}?alt=media&ifGenerationNotMatch={first}")[0] == 304
        with ThreadPoolExecutor(8) as pool:
            made = [json.loads(body) for _, body in pool.map(lambda n: ask(upload, "POST", b"0123456789"), range(16))]
        generations = {int(each["generation"]) for each in made}
        assert len(generations) == 16
        assert min(generations) > int(first)
        assert ask(f"{upload}&ifGenerationMatch={first}", "POST", b"late")[0] == 412
        assert ask(f"{place}?ifGenerationMatch={first}", "DELETE")[0] == 412
        assert ask(f"{place}?alt=media", Range="bytes=2-4") == (206, b"234")
        assert ask(f"{place}?alt=media", Range="bytes=-3") == (206, b"789")
        assert ask(f"{place}?alt=media", Range="bytes=10-")[0] == 416
        assert ask(f"{place}?ifGenerationMatch={max(generations)}", "DELETE")[0] == 204
        assert ask(place)[0] == 404
        assert bucket.problems == []


def test_the_bucket_lists_in_pages() -> None:
    with FakeGcs(page=2) as bucket:
        for name in ("a", "b/1", "b/2", "b/c/3", "d"):
            bucket.put(name, b"")
        found: list[str] = []
        token = ""
        while True:
            _, body = ask(f"{bucket.url}/storage/v1/b/bucket/o?delimiter=/&pageToken={token}")
            page = json.loads(body)
            found += [*(each["name"] for each in page.get("items", [])), *page.get("prefixes", [])]
            token = page.get("nextPageToken")
            if not token:
                break
        assert found == ["a", "b/", "d"]
        _, body = ask(f"{bucket.url}/storage/v1/b/bucket/o?prefix=b/&startOffset=b/2&endOffset=c&maxResults=9")
        assert [each["name"] for each in json.loads(body)["items"]] == ["b/2", "b/c/3"]
