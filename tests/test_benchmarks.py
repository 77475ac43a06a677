"""The benchmarks can be started, without PyTorch too; nothing here measures anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Report, geometric_mean, in_turn, ratio

ROOT = Path(__file__).resolve().parents[1]
PEERS = "torch_peers"  # the one file that needs PyTorch
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("__init__", PEERS))
COMMANDS = [name for name in NAMES if name not in ("measure", "input_peers")]


def test_every_module_imports_without_torch():
    code = "import sys; sys.modules['torch'] = None\n" + "\n".join(f"import benchmarks.{name}" for name in NAMES)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def helps():
    """What each command says of itself, and its exit code; in one process, which imports JAX once."""
    code = """
import contextlib, io, json, runpy, sys
said = {}
for name in sys.argv[1:]:
    sys.argv = [f"benchmarks/{name}.py", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as left:
            said[name] = [left.code or 0, output.getvalue()]
print(json.dumps(said))
"""
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, helps):
    code, output = helps[name]
    assert code == 0
    assert f"python -m benchmarks.{name}" in output


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
