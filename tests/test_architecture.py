"""The project against its own words: floors, dead options, what the README and the experiments name."""

import ast
import contextlib
import dataclasses
import importlib
import re
import sys
from operator import attrgetter
from pathlib import Path

import pytest

from jaxcnn.config import Config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxcnn"

# A room, a folder or a file beside them, imports from strictly lower floors; within a room modules import one way.
FLOORS = {
    "errors": 0, "files": 0, "terminal": 0, "plain_data": 0,
    "config": 1, "fingerprints": 1, "layers": 1, "hosts": 1,
    "augment": 2, "models": 2, "run": 2,
    "machine": 3,
    "command": 4, "data": 4, "launch": 4, "transfer": 4,
    "tasks": 5,
    "training": 6,
    "results": 7,
    "train": 8, "serving": 8, "export": 8, "compression": 8,
    "ablation": 9,
    "report": 10,
    "main": 11, "evaluate": 11, "predict": 11, "diagnose": 11, "lr_find": 11, "generate": 11,
    "serve": 11, "prune": 11, "quantize": 11, "sweep": 11, "compare": 11, "ledger": 11,
    "search": 11,
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """The jaxcnn modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("jaxcnn.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxcnn":
            assert node.level == 0
            folder = ROOT.joinpath(*str(node.module).split("."))
            for alias in node.names:  # a name in a module, or a module in a folder
                is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else str(node.module))
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(path: Path) -> int:
    """A folder's `__main__.py` is a command, whatever floor the folder is on."""
    return FLOORS["main" if path.name == "__main__.py" else room(path)]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def dotted(path: Path) -> str:
    return ".".join(["jaxcnn", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def test_every_module_stands_on_a_floor():
    assert {room(path) for path in modules()} == set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    for module in imports(path):
        other = module.split(".")[1]
        assert other == room(path) or FLOORS[other] < floor(path), f"{path.name} imports {module}"


def test_no_loops_within_a_room():
    graph = {dotted(path): {each for each in imports(path) if each.split(".")[1] == room(path)} for path in modules()}
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"import loop: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


# How each group of the config is called, and where: a field that is read nowhere turns nothing.
READERS = {
    "data": (("data", "config.data", "_config.data"), ("data", "build", "feed", "tasks")),
    "forecast": (("options", "config.forecast"), ("tasks",)),
    "segmentation": (("options", "config.segmentation"), ("tasks",)),
    "table": (("options", "config.table"), ("tasks",)),
    "text": (("options", "config.text"), ("tasks",)),
    "language": (("options", "config.language"), ("tasks",)),
    "augment": (("augment", "config.augment"), ("augment", "data", "build", "feed")),
    "model": (("config", "config.model"), ("build", "make")),
    "loss": (("config", "config.loss"), ("losses", "tasks")),
    "distill": (("distill", "config.distill"), ("tasks",)),
    "multilabel": (("config.multilabel", "multilabel"), ("tasks",)),
    "optimizer": (("optimizer", "config.optimizer"), ("optim", "averaging", "build")),
    "groups": (("groups", "optimizer.groups"), ("airbench_optim",)),
    "schedule": (("schedule",), ("optim", "patience")),
    "early_stop": (("config.early_stop", "early_stop"), ("patience", "config")),
    "finetune": (("finetune",), ("finetune",)),
    "checkpoint": (("config.checkpoint", "cadence"), ("loop", "train", "patience")),
    "telemetry": (("config.telemetry",), ("build",)),
    "profile": (("config.profile",), ("build", "loop")),
    None: (("config",), ("build", "loop", "train", "media", "tasks")),
}  # fmt: skip


def test_every_option_is_read():
    def visit(schema, group=None):
        for each in dataclasses.fields(schema):
            if dataclasses.is_dataclass(each.type):
                yield from visit(each.type, each.name)
            else:
                yield group, each.name

    unread = []
    for group, name in visit(Config):
        names, rooms = READERS[group]
        text = "".join(p.read_text() for p in modules() if room(p) in rooms or p.stem in rooms)
        if not re.search(rf"\b({'|'.join(map(re.escape, names))})\.{name}\b", text):
            unread.append(f"{group}.{name}")
    assert not unread, unread


def test_no_tensorflow_or_torch_in_the_package():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("tensorflow", "torch", "keras"), f"{path}: {name}"


# Who else opens files, makes JSON or prints, and why that is no other door.
OTHER_DOORS = {
    "files.py": "the door for files", "terminal.py": "the way out to a terminal",
    "config/plain.py": "JSON that no file holds", "fingerprints.py": "JSON that no file holds",
    "run/workdir.py": "arrays in bytes that are read", "data/arrays.py": "members of an archive that is open",
    "data/decoding.py": "the opener of images",
    "data/downloads.py": "downloads, and what archives hold, as large as was registered",
    "data/label_cache.py": "the private cache", "data/resident.py": "the private cache",
    "export/runtime.py": "an archive in bytes, whose digest is pinned",
    "export/stablehlo.py": "arrays in bytes that are read and written",
    "launch/system.py": "a login node, where none of the doors' libraries is installed",
    "layers/onednn/library.py": "what the kernel says, in files that have no size",
    "data/without_tensorflow.py": "TensorFlow's file functions, in its stead",
}  # fmt: skip
FILE_CALLS = {
    "open", "io.open", "gzip.open", "Image.open", "json.dumps", "json.dump", "json.load", "json.loads", "print",
    "np.load", "np.savez", "np.save", "Console", "sys.stdout.write", "sys.stderr.write",
}  # fmt: skip
FILE_METHODS = {"read_text", "write_text", "read_bytes", "write_bytes", "open"}


def doors(path: Path) -> set[str]:
    """Calls of a file that read, write or print by themselves."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            is_method = isinstance(node.func, ast.Attribute) and node.func.attr in FILE_METHODS
            if (name in FILE_CALLS or is_method) and name != "os.open":
                found.add(f"{name}, line {node.lineno}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_terminals_have_one_door(path):
    """jaxcnn/files.py and jaxcnn/terminal.py: what is read is bounded, what is written is UTF-8, names are text."""
    name = str(path.relative_to(PACKAGE))
    assert bool(doors(path)) == (name in OTHER_DOORS), doors(path)


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SOURCES = [path for room in ("jaxcnn", "experiments", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py")]


def defined_in(path: Path) -> set[str]:
    return {
        target
        for node in ast.walk(ast.parse(path.read_text()))
        for target in (
            [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [name.id for each in node.targets for name in ast.walk(each) if isinstance(name, ast.Name)]
            if isinstance(node, ast.Assign)
            else [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            else []
        )
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_things_that_exist(page):
    """Every `file.py` and `file.py:name` in it is a file of the project, or the end of its path, and a name in it."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", text)
    assert page not in ("docs/changing.md", "docs/security.md") or sum(bool(name) for _, name in named) >= 5
    for file, name in named:
        files = [path for path in SOURCES if f"/{path.relative_to(ROOT)}".endswith(f"/{file}")]
        assert files, f"{page} names {file}"
        assert not name or any(name in defined_in(path) for path in files), f"{page} names {file}:{name}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_links_to_files_that_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).is_file(), f"{page} links to {target}"


def flags_of(module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The flags that a command's --help names, of `python -m module`."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    is_file = ROOT.joinpath(*module.split(".")).with_suffix(".py").exists()
    command = importlib.import_module(module if is_file else f"{module}.__main__")
    with contextlib.suppress(SystemExit):
        command.main(*((sys.argv, 0.0) if module.startswith("jaxcnn.") else ()))
    return set(re.findall(r"--(\w+)", capsys.readouterr().out))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_gives_flags_that_its_commands_have(page, capsys, monkeypatch):
    text = (ROOT / page).read_text().replace("\\\n", " ")
    for module, rest in re.findall(r"python -m ((?:jaxcnn|benchmarks)\.\w+)([^`#&\n]*)", text):
        given = {name.replace("-", "_") for name in re.findall(r"(?<!\S)\[?--([\w.-]+)", rest)}
        options = {name for name in given if name.startswith("config.")}
        known = flags_of(module, capsys, monkeypatch) | {"help"}
        assert given - options <= known, f"{page}: python -m {module}{rest}"
        for option in options:
            attrgetter(option.removeprefix("config."))(Config())  # or AttributeError


def test_every_dependency_is_bounded_and_ci_installs_one_that_is_allowed():
    """Of the project and of its tests: a release elsewhere breaks neither."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / ".ci" / "constraints.txt").read_text().split()
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in map(
        Requirement,
        [
            *project["dependencies"],
            *extras["gcs"],
            *extras["export"],
            *extras["quantize"],
            *extras["search"],
            *extras["test"],
            *extras["dev"],
        ],
    ):
        if requirement.name != "jaxcnn":
            assert "<" in {each.operator for each in requirement.specifier}, requirement
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_architecture_page_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py") and room(path) != "models":
            assert path.name in page, f"docs/architecture.md does not mention {path.name}"


def test_modules_say_what_they_hold():
    for path in modules():
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, path
        assert len(doc.splitlines()) <= 8, f"{path}: the docstring is longer than a newcomer reads"


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "evaluate",
        "predict",
        "diagnose",
        "lr_find",
        "generate",
        "serve",
        "prune",
        "sweep",
        "ledger",
        "search",
        "data.__main__",
        "report.__main__",
        "transfer.__main__",
        "export.__main__",
        "quantize",
        "compare",
        "launch.__main__",
    ],
)
def test_importing_a_command_imports_no_jax(name):
    """So that --help and a typo are answered at once."""
    import subprocess
    import sys

    code = f"import sys, jaxcnn.{name}; sys.exit(int('jax' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    importlib.import_module(f"jaxcnn.{name}")
