"""The benchmarks can be started, without PyTorch too; nothing here measures anything."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
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
