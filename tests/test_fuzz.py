"""Hostile inputs to every command, 2,100 of them: each is answered in a line or two, in time, in 2 GB."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzzing import IMPORTED, KINDS, Outcome

ROOT = Path(__file__).resolve().parents[1]
INPUTS = {"command_lines": 700, "configs": 350, "rows": 350, "images": 250, "tables": 200, "arrays": 200, "weights": 50}


def test_what_is_imported_is_there():
    """The rest of this file is slow, and would be seen to fail late."""
    assert all(importlib.util.find_spec(f"jaxcnn.{name}") for name in IMPORTED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_input_is_answered_ill(kind, capsys):
    """By kind: `python -m tests.fuzzing KIND NUMBER 1` makes one again."""
    command = [sys.executable, "-m", "tests.fuzzing", kind, os.environ.get("JAXCNN_FUZZ_FIRST", "0"), str(INPUTS[kind])]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    *ill, last = map(json.loads, found.stdout.splitlines())
    with capsys.disabled():
        print(f"\n{kind}: {Counter(last['counts'])}")
    assert not ill, "\n".join(map(str, ill))


def test_there_are_enough():
    assert sum(INPUTS.values()) >= 2000
    assert set(INPUTS) == set(KINDS)


@pytest.mark.parametrize(("outcome", "fault"), [
    (Outcome(0, "fine", "", 1, 1, ""), ""),
    (Outcome(2, "", "jaxcnn: wrong\n", 1, 1, ""), ""),
    (Outcome(2, "", "jaxcnn: wrong\nand more\n", 1, 1, ""), "2 lines"),
    (Outcome(2, "", "", 1, 1, ""), "0 lines"),
    (Outcome(1, "", "", 1, 1, ""), "no word"),
    (Outcome(1, "", "Traceback (most recent call last)\n", 1, 1, ""), "traceback"),
    (Outcome(0, "\x1b[2J", "", 1, 1, ""), "control characters"),
    (Outcome(-11, "", "jaxcnn: x", 1, 1, ""), "exit code -11"),
    (Outcome(-9, "", "", 1, 1, "memory"), "memory"),
])  # fmt: skip
def test_the_verdict(outcome, fault):
    assert outcome.fault() == fault
