"""jaxcnn's commands: as processes of their own, which can be killed, and in this one, which has long imported JAX."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from jaxcnn import command

ROOT = Path(__file__).resolve().parents[1]


def environment(devices: int = 1, **changes: str) -> dict[str, str]:
    """What a command's process starts with: XLA's flags as the suite has them, so that they share compiled programs."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "COLUMNS": "120", **changes}


def start(*arguments: object, module: str = "main", devices: int = 1, text: bool = True, **changes: str):
    """Starts a command as a process; `changes` are of its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", f"jaxcnn.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=environment(devices, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=text,
    )


def run(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """Runs a command as a process, with options as `start` has them; its exit code, output and errors."""
    process = start(*arguments, **options)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def run_here(*arguments: object, module: str = "main") -> tuple[int, str, str]:
    """The same in this process, of eight devices: a second where a process takes four, of which three are imports.

    What `run_command` does to a process at its beginning is left out: signals, the libraries' logs, a second exec.
    """
    outcome: Any = None
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for name in ("begin_anew", "take_over", "quiet_libraries"):
            stack.enter_context(mock.patch.object(command, name))
        stack.enter_context(mock.patch.object(command.stopping, "at_once"))
        stack.enter_context(mock.patch.object(sys, "argv", [module, *map(str, arguments)]))
        stack.enter_context(mock.patch.dict(os.environ, COLUMNS="120"))
        stack.enter_context(contextlib.chdir(ROOT))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        try:
            command.run_command(importlib.import_module(f"jaxcnn.{module}").main)
        except SystemExit as left:
            outcome = left.code
    assert isinstance(outcome, int)
    return outcome, output.getvalue(), errors.getvalue()
