"""Hostile inputs to every command: python -m tests.fuzzing KIND FIRST COUNT; a line of JSON for each answered ill.

An input is made from its kind and a number alone, so that one that failed is made again. JAX is imported once; a
process forked from there runs each command, watched by time and by memory.
"""

import contextlib
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

IMPORTED = (  # once, before each input's process is forked
    "training.build", "training.loop", "results.trained", "results.measure", "evaluate", "predict", "report.from_files",
    "report.from_network",
)  # fmt: skip
MOST_BYTES = 2 << 30
MOST_SECONDS = 60
ROOT = Path(__file__).resolve().parents[1]
DIGITS = f"--config={ROOT / 'experiments/digits.py'}"
Random = random.Random

WORDS = (
    "", "0", "-1", "1", "nan", "inf", "-inf", "1e400", "1e300", "1e-320", "9" * 30, "-" + "9" * 30, "0x10",
    "None", "none", "true", "()", "(0,)", "(1e308,)", "[b]", "[/b]", ":smile:", "\x1b[2J", "a\nb", "\x9b1m", "é猫",
    "\udcff", "$x$",
    "%s%n", "{}", "x" * 300, "x" * 5000, "..", "../..", "ZERO", "FULL", "FIFO", "/proc/self/mem",
    "/proc/x", "~nosuchuser/x", "nope://x", "://", "folder:", "folder:/proc", "tfds:",
    "tfds:..",
    "\u0661", "\u202e", "--", "-", "=", "best", "last", "test", "flip", "FILE", "FOLDER", "BYTES",
    "LINK", "NONE", "OUT",
)  # fmt: skip
TRAPS = ("FILE", "FOLDER", "BYTES", "LINK", "ZERO", "FULL", "FIFO", "NONE", "OUT")
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 10**30, 0.5, float("nan"), float("inf"), "", "x", "\x1b[2J", "a\nb", "\ud800", [], [0],
    ["a"] * 3, [[]], {}, {"a": 1}, "../..", "x" * 1000,
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A command and its arguments; the files they name are there."""

    module: str
    arguments: list[str]


# ---- what goes wrong


def flipped(generator: Random, content: bytes) -> bytes:
    """A file with some of its bytes changed, cut off, taken out, repeated or put in."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 5, 20))):
        place = generator.randrange(len(data) + 1)
        kind = generator.randrange(6)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            del data[place : place + generator.choice((1, 4, 100))]
        elif kind == 2:
            data[place:place] = generator.randbytes(generator.choice((1, 4, 100)))
        elif kind == 3:
            data[place : place + 4] = struct.pack(
                generator.choice("<>") + "I", generator.choice((0, 1, 2**31, 2**32 - 1))
            )
        elif place < len(data):
            data[place] = generator.randrange(256)
    return bytes(data)


def changed(generator: Random, tree: Any) -> Any:
    """JSON's data with one node replaced, taken out, or under another name."""
    tree = json.loads(json.dumps(tree))
    node, keys = tree, list[Any]()
    while isinstance(node, dict | list) and node:
        key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
        keys.append((node, key))
        node = node[key]
        if generator.random() < 0.3:
            break
    if not keys:
        return generator.choice(VALUES)
    holder, key = keys[-1]
    kind = generator.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[generator.choice(("x", "\x1b[2J", "", "[/b]"))] = holder.pop(key)
    else:
        holder[key] = generator.choice(VALUES)
    return tree


def word(generator: Random, folder: Path) -> str:
    """An argument's value; files of each kind are in the folder."""
    chosen = generator.choice(WORDS)
    return str(folder / chosen.lower()) if chosen in TRAPS else chosen


def traps(generator: Random, folder: Path) -> None:
    """What words name."""
    (folder / "file").write_text("text\n")
    (folder / "folder").mkdir()
    (folder / "bytes").write_bytes(generator.randbytes(300))
    (folder / "link").symlink_to(folder / "link")
    (folder / "zero").symlink_to("/dev/zero")  # by a link: a device by its own name could be replaced, by root
    (folder / "full").symlink_to("/dev/full")
    os.mkfifo(folder / "fifo")


# ---- inputs by kind: each makes files in the folder

OPTIONS = {
    "main": ("workdir", "dry_run", "flagfile", "config"),
    "lr_find": ("min", "max", "steps", "output", "config"),
    "sweep": ("study", "over", "seeds", "folds", "random", "metric", "split", "workdir", "workers", "config"),
    "evaluate": ("workdir", "split", "data", "data_dir", "step", "tta", "resamples", "output"),
    "predict": (
        "workdir", "init_from", "model", "step", "top_k", "tta", "batch_size", "csv", "json", "explain", "target",
        "masks", "drawn",
    ),
    "generate": ("workdir", "step", "prompt", "length", "temperature", "top_k", "top_p", "beam", "num", "seed"),
    "report": ("workdir", "output", "split", "step", "image", "data_dir"),
    "diagnose": ("workdir", "json"),
    "models": ("filter", "json"),
    "data describe": ("data_dir", "image_size", "sheet", "augment", "json"),
    "data check": ("data_dir", "exclude", "write_clean", "csv", "json", "near_threshold"),
    "serve": (
        "init_from", "model", "onnx", "step", "host", "port", "batch_size", "requests", "images", "megabytes",
        "megapixels", "seconds", "tta",
    ),
    "ledger": ("add", "metric", "split", "experiment", "words", "hardware", "check", "seeds", "workdir", "root"),
    "transfer export": ("workdir", "to", "force"),
    "quantize": ("workdir", "init_from", "model", "step", "calibration", "images", "calibrate_on", "on", "exclude",
                 "weight_bits", "data_dir", "json"),
    "export": ("workdir", "to", "step", "weights", "raw", "images", "data_dir", "license", "runtime", "onnx",
               "force"),
    "transfer probe": ("config", "workdir", "layer", "classifier", "json"),
    "prune": ("workdir", "out", "step", "keep", "by", "ranked", "rounds", "multiple", "images", "unstructured",
              "epochs", "learning_rate", "batch_size"),
    "compare": ("metric", "split", "base", "sort", "predictions", "no_write", "output"),
    "search": ("space", "trials", "sampler", "pruner", "seed", "metric", "workdir", "config"),
}  # fmt: skip
NEEDED = {
    "main": [DIGITS, "--dry_run"], "lr_find": [DIGITS],
    "sweep": [DIGITS, "--over=model.dropout_rate=0,0.3", "--dry_run"],
    "evaluate": ["--workdir=RUN", "--resamples=0"], "predict": ["--workdir=RUN", "IMAGE"],
    "generate": ["--workdir=RUN"],
    "ledger": ["--root=OUT"],  # where no ledger is: it trains nothing, and leaves the project's own alone
    "serve": ["--workdir=/nowhere"],  # it never gets so far as to serve
    "report": ["--workdir=RUN", "--quick"], "diagnose": ["--workdir=RUN"], "models": [], "data describe": ["SET"],
    "data check": ["SET"], "transfer export": ["--workdir=RUN", "OUT.safetensors"],
    "transfer probe": [DIGITS], "export": ["--workdir=RUN", "--to=safetensors", "OUT.safetensors"],
    "prune": ["--workdir=RUN", "--out=OUT"],
    "quantize": ["--workdir=RUN", "OUT.onnx", "--step=99999"],
    "compare": ["RUN"],
    "search": [DIGITS, "--space=optimizer.learning_rate=log:1e-3:1", "--workdir=OUT", "--dry_run"],
}  # fmt: skip


def command_lines(generator: Random, folder: Path, run: Path) -> Input:
    """A command with a hostile value for one of its options, two, or a stray one."""
    from jaxcnn.config import Config, flatten

    traps(generator, folder)
    name = generator.choice(list(OPTIONS))
    module, *command = name.split()
    given = []
    for _ in range(generator.choice((1, 1, 2))):
        options = list(OPTIONS[name])
        if "config" in options and generator.random() < 0.7:
            options = [f"config.{field}" for field in flatten(Config())]
        option, value = generator.choice(options), word(generator, folder)
        given += [f"--{option}={value}"] if generator.random() < 0.9 else [f"--{option}", value]
    if generator.random() < 0.1:
        given.append(word(generator, folder))
    places = {"RUN": str(run), "IMAGE": str(run.parent / "set/a/0.png"), "SET": f"folder:{run.parent / 'set'}"}
    needed = [re.sub("RUN|IMAGE|SET", lambda match: places[match[0]], each) for each in NEEDED[name]]
    needed = [each.replace("OUT", str(folder / "out")) for each in needed]
    first, rest = (needed[:1], needed[1:]) if needed and not needed[0].startswith("-") else ([], needed)
    workdir = [f"--workdir={folder / 'new'}"] if name == "main" else []
    return Input(module, [*command, *first, *workdir, *rest, *given])


def _copied(folder: Path, run: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


def _of_a_run(generator: Random, folder: Path, run: Path) -> Input:
    module = generator.choice(("diagnose", "report", "report", "predict", "evaluate", "main"))
    more = {
        "report": ["--quick"],
        "predict": [str(run.parent / "set/a/0.png")],
        "evaluate": ["--resamples=0", "--nocalibrate"],
        "main": [DIGITS, "--dry_run"],
    }
    return Input(module, [f"--workdir={folder / 'run'}", *more.get(module, [])])


def configs(generator: Random, folder: Path, run: Path) -> Input:
    """A run whose config.json says something else, or nothing."""
    file = _copied(folder, run) / "config.json"
    saved = json.loads(file.read_text())
    for _ in range(generator.choice((1, 1, 3))):
        saved = changed(generator, saved)
    text = json.dumps(saved).encode()
    file.write_bytes(flipped(generator, text) if generator.random() < 0.2 else text)
    return _of_a_run(generator, folder, run)


def rows(generator: Random, folder: Path, run: Path) -> Input:
    """A run whose rows, summary or splits are others'."""
    copied = _copied(folder, run)
    found = [each for each in copied.glob("*.json*") if each.name != "config.json"] + [copied / "splits.npz"]
    file = generator.choice(sorted(found))
    if file.suffix == ".npz" or generator.random() < 0.2:
        file.write_bytes(flipped(generator, file.read_bytes()))
    elif file.suffix == ".json":
        file.write_text(json.dumps(changed(generator, json.loads(file.read_text()))))
    else:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for _ in range(generator.choice((1, 3))):
            place = generator.randrange(len(lines))
            lines[place] = changed(generator, lines[place])
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return _of_a_run(generator, folder, run)


def images(generator: Random, folder: Path, run: Path) -> Input:
    """A folder with images that are damaged, or lie of their size."""
    root = folder / "set"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            content = io.BytesIO()
            size = generator.choice(((8, 8), (30, 20), (1, 300), (300, 1)))
            mode = generator.choice(("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"))
            kind = {"P": "GIF", "RGBA": "PNG", "CMYK": "TIFF", "I;16": "TIFF", "1": "PNG"}.get(mode)
            kind = kind or generator.choice(("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"))
            with contextlib.suppress(OSError, KeyError):
                Image.fromarray(
                    np.frombuffer(generator.randbytes(size[0] * size[1]), np.uint8).reshape(size[1], size[0])
                ).convert(mode).save(content, kind)
            data = content.getvalue()
            data = flipped(generator, data) if generator.random() < 0.7 else data
            (root / name / f"{number}.{generator.choice((kind.lower(), 'png', 'jpg'))}").write_bytes(data)
    command = generator.choice(("describe", "check", "predict"))
    if command == "predict":
        return Input("predict", [f"--workdir={run}", str(root)])
    return Input("data", [command, f"folder:{root}"])


def tables(generator: Random, folder: Path, run: Path) -> Input:
    """A CSV of images and labels."""
    traps(generator, folder)
    lines = [f"{run.parent / 'set' / name / str(number)}.png,{name}" for name in "ab" for number in range(6)]
    for _ in range(generator.choice((1, 3))):
        place = generator.randrange(len(lines))
        lines[place] = f"{word(generator, folder)},{word(generator, folder)}"
    text = "\n".join(["path,label", *lines]).encode("utf-8", "surrogateescape")
    text = flipped(generator, text) if generator.random() < 0.4 else text
    (folder / "set.csv").write_bytes(text)
    return Input("data", [generator.choice(("describe", "check")), f"csv:{folder / 'set.csv'}"])


def arrays(generator: Random, folder: Path, run: Path) -> Input:
    """An .npz of images and labels, and some that lie of their shapes."""
    labels: Any = generator.choice((
        np.arange(20) % 2, np.arange(20) - 3, np.array(["a", "b\x1b"] * 10), np.zeros((20, 2)), np.float64(3),
        np.array([0] * 19 + [2**31 - 2]), np.full(20, np.nan), np.zeros(20, "datetime64[s]"), np.zeros(0), np.eye(20),
    ))  # fmt: skip
    pixels = generator.choice((
        np.zeros((20, 8, 8), np.uint8), np.zeros((20, 8, 8, 3)), np.full((20, 8, 8), np.nan), np.zeros((20, 0, 8)),
        np.zeros((19, 8, 8), np.uint8), np.zeros((20, 8, 8), complex), np.zeros(20), np.zeros((20, 1, 3000), np.uint8),
    ))  # fmt: skip
    file = folder / "set.npz"
    stored = {"x_train": pixels, "y_train": labels}
    if generator.random() < 0.4:
        stored[generator.choice(("class_names", "x_test", "y_test", "x"))] = generator.choice((labels, pixels))
    np.savez(file, **stored)
    if generator.random() < 0.5:
        with zipfile.ZipFile(file) as opened:
            members = {name: opened.read(name) for name in opened.namelist()}
        name = generator.choice(sorted(members))
        shape = generator.choice((b"(2, 10000000, 10000000)", b"(-1, 8)", b"'x'", b"(20, 8, 8,", b"()"))
        members[name] = generator.choice((
            flipped(generator, members[name]), re.sub(rb"\(20,[^)]*\)", shape, members[name], count=1),
        ))  # fmt: skip
        with zipfile.ZipFile(file, "w", generator.choice((0, zipfile.ZIP_DEFLATED))) as opened:
            for each, content in members.items():
                opened.writestr(each, content)
    if generator.random() < 0.2:
        file.write_bytes(flipped(generator, file.read_bytes()))
    return Input("data", [generator.choice(("describe", "check")), f"npz:{file}"])


def weights(generator: Random, folder: Path, run: Path) -> Input:
    """A .safetensors or .pth to begin with."""
    suffix = generator.choice(("safetensors", "pth"))
    file = folder / f"weights.{suffix}"
    file.write_bytes(flipped(generator, (run.parent / f"weights.{suffix}").read_bytes()))
    options = [DIGITS, "--config.model.name=mlp", "--config.init_head=new", "--dry_run"]
    return Input("main", [*options, f"--config.init_from={file}", f"--workdir={folder / 'new'}"])


KINDS: dict[str, Callable[[Random, Path, Path], Input]] = {
    each.__name__: each for each in (command_lines, configs, rows, images, tables, arrays, weights)
}


# ---- running one


@dataclass(frozen=True)
class Outcome:
    """What became of a command."""

    code: int
    output: str
    errors: str
    seconds: float
    peak: int
    stopped: str  # why we ended it, or nothing

    def fault(self) -> str:
        """What is wrong with the answer, or nothing."""
        if self.stopped:
            return self.stopped
        if self.code not in (0, 1, 2, 75):
            return f"exit code {self.code}"
        if "Traceback" in self.errors:
            return "traceback"
        if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", self.output + self.errors):
            return "control characters"
        lines = self.errors.splitlines()
        if self.code == 2 and len(lines) != 1:
            return f"{len(lines)} lines"
        if self.code and not lines and "error" not in self.output:
            return "no word"
        return ""


def execute(each: Input, folder: Path) -> Outcome:
    """Runs it in a process forked from this one."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        since = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(each, folder, output.fileno(), errors.fileno())
        stopped, peak, status = "", 0, 0
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            peak = max(peak, _resident(child))
            if peak > MOST_BYTES or time.monotonic() - since > MOST_SECONDS:
                stopped = "memory" if peak > MOST_BYTES else "hang"
                os.killpg(child, signal.SIGKILL)
                break
            time.sleep(0.01)
        _, status = os.waitpid(child, 0)
        seconds, code = time.monotonic() - since, os.waitstatus_to_exitcode(status)
        return Outcome(code, _text(output), _text(errors), seconds, peak, stopped)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "backslashreplace")


def _become(each: Input, folder: Path, output: int, errors: int) -> None:

    code = 70
    try:
        os.setpgid(0, 0)
        os.makedirs(folder / "in" / "in")
        os.chdir(folder / "in" / "in")  # names without a folder stay within it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = [f"jaxcnn.{each.module}", *each.arguments]
        import jaxcnn.command as command_lib

        command_lib.begin_anew = lambda: None
        name = f"jaxcnn.{each.module}" + (
            ".__main__" if each.module in ("data", "models", "report", "transfer") else ""
        )
        command_lib.run_command(importlib.import_module(name).main)
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os._exit(code)


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def prepare(folder: Path) -> Path:
    """A run of a few steps, its weights as files, and a folder of images."""
    run, generator = folder / "digits", np.random.default_rng(0)
    for name in "ab":
        (folder / "set" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(folder / "set" / name / f"{number}.png")
    short = ["--config.num_steps=20", "--config.telemetry.every_steps=5", "--config.log_every_steps=5"]
    options = [DIGITS, "--config.model.name=mlp", "--config.model.dropout_rate=none", *short]
    for each in (
        Input("main", [*options, f"--workdir={run}"]),
        Input("transfer", ["export", f"--workdir={run}", "--to=jaxcnn", str(folder / "weights.safetensors")]),
    ):
        made = execute(each, folder / each.module)
        assert made.code == 0, made
    _write_pth(folder / "weights.pth")
    return run


def _write_pth(path: Path) -> None:
    """As PyTorch stores a tensor of four numbers; of PyTorch's own, where it is there."""
    with contextlib.suppress(ImportError):
        import torch

        torch.save({"head.weight": torch.zeros(10, 4), "head.bias": torch.zeros(10)}, path)
        return
    path.write_bytes(b"PK\x03\x04")


def fuzz(kind: str, first: int, count: int) -> tuple[int, Counter[str], list[dict[str, Any]]]:
    """(inputs, how many of each command, those that were answered ill)."""
    counts: Counter[str] = Counter()
    ill = []
    with tempfile.TemporaryDirectory(prefix="jaxcnn-fuzz-") as made:
        run = prepare(Path(made))
        for number in range(first, first + count):
            with tempfile.TemporaryDirectory(prefix="jaxcnn-fuzz-input-") as folder:
                each = KINDS[kind](Random(f"{kind} {number}"), Path(folder), run)
                outcome = execute(each, Path(folder))
            counts[" ".join([each.module, *(word for word in each.arguments[:1] if word.isalpha())])] += 1
            if fault := outcome.fault():
                last = outcome.errors.strip().splitlines()[-1:]
                facts = {"seconds": round(outcome.seconds, 1), "peak": outcome.peak >> 20}
                ill.append({
                    "kind": kind, "number": number, "fault": fault, "command": each.module,
                    "arguments": each.arguments, "last": last, **facts,
                })  # fmt: skip
                print(json.dumps(ill[-1]), flush=True)
    return count, counts, ill


def main() -> None:
    """As the module says; the last line has the counts."""
    os.chdir(ROOT)
    import jax  # noqa: F401 - before the fork

    for name in IMPORTED:
        importlib.import_module(f"jaxcnn.{name}")
    _, counts, ill = fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"counts": counts, "ill": len(ill)}))


if __name__ == "__main__":
    main()
