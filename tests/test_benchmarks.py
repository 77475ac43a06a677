"""The benchmarks can be started, without PyTorch too; nothing here measures anything."""

import argparse
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import all as everything
from benchmarks import pack
from benchmarks.measure import LEFT_OUT, Report, begin, geometric_mean, in_turn, ratio
from jaxcnn.data.decoding import decode_image

ROOT = Path(__file__).resolve().parents[1]
PEERS = "torch_peers"  # the one file that needs PyTorch
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("__init__", PEERS))
COMMANDS = [name for name in NAMES if name not in ("measure", "input_peers")]
WITH_JAX = ("jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy")  # what pip installs with it
# Runs argv[2:] with only the packages of argv[1] there.
WITH_NOTHING_ELSE = """
import importlib.abc, importlib.metadata, re, sys
allowed = {re.sub("[-_.]+", "-", name).lower() for name in sys.argv[1].split(",")}
others = {
    package for package, names in importlib.metadata.packages_distributions().items()
    if not allowed & {re.sub("[-_.]+", "-", name).lower() for name in names}
} - {"jaxcnn", "benchmarks", "experiments", "tests", "_distutils_hack"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
from benchmarks import accuracy
from benchmarks.measure import begin
begin(accuracy.main)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """An npz of CIFAR-10's kind, packed as files and unpacked again; a set of noise, but its pixels are JPEG's."""
    cv2 = pytest.importorskip("cv2")
    folder, generator = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    digest = hashlib.sha256()
    for split, count in (("train", 40), ("test", 20)):
        images = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        files = [cv2.imencode(".jpg", image)[1].tobytes() for image in images]
        for file in files:
            digest.update(decode_image(file, 3).tobytes())
        arrays |= {f"{split}_files": np.frombuffer(b"".join(files), np.uint8),
                   f"{split}_lengths": np.array([len(file) for file in files], np.int32),
                   f"{split}_labels": (np.arange(count) % 10).astype(np.uint8)}  # fmt: skip
    arrays |= {"class_names": np.array([str(number) for number in range(10)]), "sha256": digest.hexdigest()}
    np.savez_compressed(folder / pack.IMAGES, **arrays)
    pack.unpack_images(folder / pack.IMAGES, folder / "cifar10.npz")
    return folder


def test_every_module_imports_without_torch():
    code = "import sys; sys.modules['torch'] = None\n" + "\n".join(f"import benchmarks.{name}" for name in NAMES)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert not ended.value.code
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


def test_the_step_is_built_as_training_builds_it():
    from benchmarks.step import Case, OurStep, random_batch

    case = Case("mlp", (8, 8, 1), cpu_batch=2, gpu_batch=2, num_classes=3)
    step = OurStep(case, random_batch(case, 2), precision="f32")
    state, totals = step.trace().out_info
    assert jax.tree.map(lambda x: x.shape, state.params) == jax.tree.map(lambda x: x.shape, step.state.params)
    assert totals.loss.count.shape == ()
    step.forward()


def test_rounds_go_there_and_back():
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return len(order)

    found = in_turn({"a": lambda: side("a"), "b": lambda: side("b")}, 2)
    assert order == ["a", "b", "b", "a"]
    assert found == {"a": [1, 4], "b": [2, 3]}


def test_a_ratio_is_of_the_same_rounds():
    of_both = ratio({"ours": [2.0, 6.0, 3.0], "theirs": [1.0, 2.0, 2.0]}, "ours", "theirs")
    assert of_both is not None
    assert (of_both.median, of_both.low, of_both.high) == (2.0, 1.5, 3.0)
    assert ratio({"ours": [2.0]}, "ours", "theirs") is None
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_a_report_is_whole_after_each_row(tmp_path):
    report = Report(tmp_path / "deep" / "step.json", "step")
    report.add(model="a", ratio=ratio({"x": [1.0], "y": [2.0]}, "x", "y"))
    content = json.loads((tmp_path / "deep" / "step.json").read_text())
    assert content["rows"] == [{"model": "a", "ratio": {"median": 0.5, "low": 0.5, "high": 0.5}}]
    assert content["machine"]["cores"] > 0
    assert "finished" not in content
    report.finish()
    assert json.loads((tmp_path / "deep" / "step.json").read_text())["finished"]


@pytest.mark.slow
def test_what_is_packed_is_enough(packed):
    """A run of the real loop, with its checkpoints, in a process in which nothing else can be imported."""
    names = ",".join((*pack.NEEDED, *WITH_JAX))
    arguments = ["--config", "experiments/digits.py", "--max_steps", "2", "--seeds", "1", "--set"]
    arguments += [f"data.name=npz:{packed / 'cifar10.npz'}", "model.name=mlp", "batch_size=8", "augment.crop_padding=0"]
    command = [sys.executable, "-c", WITH_NOTHING_ELSE, names, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ours seed 0: accuracy" in done.stdout
    command[3] = ",".join(WITH_JAX)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (LEFT_OUT, 0), done.stdout + done.stderr
    assert "left out: it needs" in done.stdout


def test_packed_images_are_those_that_were_stored(packed):
    with np.load(packed / "cifar10.npz") as unpacked:
        assert unpacked["x_train"].shape == (40, 32, 32, 3)
        assert unpacked["y_test"].tolist() == [*range(10), *range(10)]
    with np.load(packed / pack.IMAGES) as stored:
        arrays = dict(stored)
    np.savez(packed / "other.npz", **{**arrays, "sha256": "0"})
    with pytest.raises(SystemExit, match="its pixels are others"):
        pack.unpack_images(packed / "other.npz", packed / "never.npz")
    assert not (packed / "never.npz").exists()


def test_requirements_keep_the_projects_bounds():
    lines = pack.requirements(("flax", "orbax-checkpoint", "PyYAML", "etils"))
    assert [line.split(">")[0] for line in lines] == ["flax", "orbax-checkpoint", "PyYAML", "etils"]
    assert "," in lines[0]
    assert lines[2] == "PyYAML"
    assert set(pack.bounds()) & set(pack.NEEDED)


def test_a_missing_package_is_a_line_and_ours_a_traceback(capsys):
    def needs(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    with pytest.raises(SystemExit) as ended:
        begin(lambda: needs("sklearn.datasets"))
    assert ended.value.code == LEFT_OUT
    assert capsys.readouterr().out == "left out: it needs sklearn.datasets, which is not installed\n"
    with pytest.raises(ModuleNotFoundError):
        begin(lambda: needs("jaxcnn.gone"))


@pytest.mark.parametrize("entry", everything.GPU_SHORT, ids=lambda entry: entry.name)
def test_the_short_entries_are_commands(entry, monkeypatch):
    """Each with what `--smallest` and `--data` add, by its own parser: an unknown option would end in 2, not in 0."""
    options = argparse.Namespace(data="npz:x", smallest=True)
    arguments = everything.with_options(entry, options).arguments
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", "x", "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{arguments[0]}").main()
    assert ended.value.code in (0, None)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "use: benchmarks/gpu.sh pack FOLDER"),
        (["pack"], "pack needs a folder"),
        (["run"], "run needs the folder that pack made"),
        (["run", "/nowhere"], "/nowhere is not what 'benchmarks/gpu.sh pack' makes"),
        (["run", "/nowhere", "--minutes", "0.5"], "--minutes=0.5 is no whole number"),
    ],
)
def test_gpu_sh_says_what_is_wrong(arguments, line):
    script = str(ROOT / "benchmarks" / "gpu.sh")
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert line in done.stderr
