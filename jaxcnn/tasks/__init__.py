"""What is learned: one module or folder a task. docs/tasks.md says how one is written."""

from importlib import import_module
from types import ModuleType

TASKS = {"classification": "jaxcnn.tasks.classification"}


def task_module(name: str) -> ModuleType:
    """The module of a task: its `open_source`, `stand_in_source` and `make_task`."""
    return import_module(TASKS[name])
