"""The real commands, as subprocesses: killed, resumed, evaluated; and what people type wrong."""

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags
from PIL import Image

from jaxcnn import command as command_lib
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from tests import fake_tfds
from tests.commands import ROOT, environment, run, run_here, start
from tests.runs import rows

DIGITS = "--config=experiments/digits.py"
SHORT = [
    "--config.num_steps=60", "--config.log_every_steps=7", "--config.optimizer.ema_decay=0.9",
    "--config.model.name=mlp", "--config.checkpoint.every_steps=9", "--config.tensorboard=false",
    "--config.num_devices=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A short run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, output, errors = run(DIGITS, *SHORT, f"--workdir={folder}")
    assert (code, errors) == (0, "")
    return folder, output


def kill_midway(folder, number, *, wanted_rows):
    process = start(DIGITS, *SHORT, f"--workdir={folder}")
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < wanted_rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.mark.parametrize("trial", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_a_random_step_and_resumed(tmp_path, whole, trial):
    """SIGKILL; the same command; bit for bit what it would have been."""
    code, _, _ = kill_midway(tmp_path / "killed", signal.SIGKILL, wanted_rows=random.randint(1, 7))
    assert code == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    code, _, errors = run(DIGITS, *SHORT, f"--workdir={tmp_path / 'killed'}")
    assert code == 0, errors
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert checksums(tmp_path / "killed") == checksums(whole[0])
    found, expected = (json.loads((each / "summary.json").read_text()) for each in (tmp_path / "killed", whole[0]))
    assert found["splits"] == expected["splits"]


def checksums(folder):
    """Of every array of the last checkpoint: params, optimizer, batch statistics, average, unfinished sums."""
    found = json.loads((folder / "checkpoints" / "60" / "json" / "metadata").read_text())["checksums"]
    assert {name.split("/")[1] for name in found if name.startswith("state")} >= {"params", "opt_state", "ema", "step"}
    return found


def test_a_signal_saves_and_exits_75(tmp_path, whole):
    code, _, errors = kill_midway(tmp_path / "stopped", signal.SIGTERM, wanted_rows=2)
    assert code == 75
    assert re.fullmatch(r"jaxcnn: SIGTERM: saved at step \d+; the same command goes on from there\n", errors)
    code, output, _ = run(DIGITS, *SHORT, f"--workdir={tmp_path / 'stopped'}")
    assert code == 0
    assert re.search(r"resuming at step \d+ of 60", output)
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_a_signal_before_the_first_step_exits_75(tmp_path):
    process = start(DIGITS, *SHORT, f"--workdir={tmp_path / 'early'}")
    deadline = time.monotonic() + 60
    while not (tmp_path / "early").exists() and time.monotonic() < deadline:  # made before anything is compiled
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.count("\n") == 1, errors


def test_what_a_person_sees(whole):
    folder, output = whole
    lines = output.splitlines()
    assert lines[0].startswith("digits: cpu")
    assert "1,293 train / 144 validation / 360 test; 8x8x1, 10 classes" in lines[1]
    assert "model mlp: 301,066 parameters" in lines[2]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 3
    assert "images/s" in epochs[-1]
    assert re.search(r"│ test +│ +360 │", output)
    assert "\x1b" not in output, "no colours or bars where nobody looks"
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert timing, "a run of a tenth of a second has at least one rate to tell"
    assert all(row["images_per_second"] > 0 for row in timing)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["step"] == 60
    assert summary["weights"] == "best validation accuracy, ema"
    assert summary.keys() == {
        "experiment", "status", "examples", "step", "epochs", "num_params", "weights", "splits", "seconds",
        "images_per_second", "platform", "num_devices", "num_processes", "seed", "versions",
    }  # fmt: skip
    assert summary["seconds"].keys() >= {"setup", "compile", "train", "evaluate"}


def test_a_terminal_gets_a_progress_bar(tmp_path):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "jaxcnn.main", DIGITS, *SHORT, f"--workdir={tmp_path / 'seen'}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(TERM="xterm-256color"), stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait() == 0
    assert b"/60 steps" in seen
    assert b"loss" in seen


def test_a_finished_run_prints_its_summary(whole):
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    code, output, errors = run_here(DIGITS, *SHORT, f"--workdir={whole[0]}")
    assert (code, errors) == (0, "")
    assert "finished" in output
    assert re.search(r"│ test +│ +360 │", output)
    assert {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")} == before


def test_evaluate_needs_the_folder_alone(tmp_path, whole):
    """From another place, on other devices, from a copy of the folder."""
    folder = tmp_path / "copied"
    subprocess.run(["cp", "-r", whole[0], folder], check=True)
    summary = json.loads((whole[0] / "summary.json").read_text())
    options = [f"--workdir={folder}", "--resamples=0", "--nocalibrate"]
    for split, evaluate in (("test", run), ("validation", run_here)):  # on one device, on eight
        code, output, errors = evaluate(*options, f"--split={split}", module="evaluate")
        assert (code, errors) == (0, "")
        found = json.loads(output.splitlines()[-1])
        for name, value in summary["splits"][split].items():
            assert found[name] == pytest.approx(value, rel=1e-5)
    code, output, _ = run_here(*options, "--split=train", "--step=last", module="evaluate")
    assert json.loads(output.splitlines()[-1])["num_examples"] == 1293


def test_pmap_on_eight_devices(tmp_path):
    code, output, errors = run_here(
        DIGITS, *SHORT, "--config.parallel=pmap", "--config.num_devices=8", f"--workdir={tmp_path / 'pmap'}",
        "--config.num_steps=10",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "8 devices by pmap" in output


def test_neither_tensorflow_nor_torch_is_imported(tmp_path):
    """By a whole training run that streams from TFDS, with TensorBoard on."""
    fake_tfds.write_set(tmp_path / "tfds", splits={"train": 60, "test": 20}, image_shape=(8, 8, 1))
    code = f"""
import sys
from jaxcnn import command, main
sys.argv = ["main", "{DIGITS}", "--config.data.name=tfds:shapes", "--config.data.dir={tmp_path}/tfds",
            "--config.num_steps=3", "--config.batch_size=8", "--config.model.name=mlp", "--workdir={tmp_path}/run",
            "--config.data.resident=false", "--config.data.num_workers=0"]
try:
    command.run_command(main.main)
except SystemExit as end:
    assert end.code == 0, end.code
found = [name for name in ("tensorflow", "torch", "keras") if name in sys.modules]
assert not found, found
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "tensorboard" / "train").is_dir()


def test_dry_run_shows_everything_and_writes_nothing(tmp_path):
    code, output, errors = run_here(DIGITS, "--dry_run", f"--workdir={tmp_path / 'none'}")
    assert (code, errors) == (0, "")
    for expected in (
        "optimizer.learning_rate = ",
        "| head/kernel",
        "Total: 87,178",
        "808 steps",
        "FLOPs",
        "predicted peak a device: ",
    ):
        assert expected in output
    assert not (tmp_path / "none").exists()


def test_dry_run_of_a_set_that_is_not_here(tmp_path):
    code, output, errors = run_here(
        "--config=experiments/imagenet_resnet50.py", "--dry_run", "--config.batch_size=4", "--config.num_devices=1",
        "--config.model.name=cnn", "--config.model.stem=none", "--config.data.image_size=16",
        f"--config.data.dir={tmp_path}",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "Total: 538,792" in output  # 1,000 classes
    assert "not prepared" in output


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("main", run),
        ("evaluate", run_here),
        ("generate", run_here),
        ("serve", run_here),
        ("export.__main__", run_here),
        ("prune", run_here),
        ("ledger", run_here),
        ("quantize", run_here),
        ("compare", run_here),
        ("sweep", run_here),
        ("search", run_here),
    ],
)
def test_help(module, command):
    code, output, _ = command("--help", module=module)
    assert code == 0
    assert f"python -m jaxcnn.{module.removesuffix('.__main__')}" in output
    assert "--workdir" in output or module == "compare"  # which takes folders


# ---- A hostile afternoon: what is typed, the devices there are, the exit code, what the one line must say.

HOSTILE = {
    "no experiment": ([], "no experiment given; pass --config"),
    "missing file": (["--config=experiments/digit.py"], "did you mean 'experiments/digits.py'"),
    "a folder": (["--config=experiments"], "does not exist"),
    "no get_config": (["--config=jaxcnn/errors.py"], "defines no get_config()"),
    "argument that is not taken": (["--config=experiments/digits.py:big"], "takes 0 positional arguments"),
    "unknown argument": (["--config=experiments/mnist.py:lenet"], "did you mean 'lenet5'"),
    "unknown group": ([DIGITS, "--config.optimiser.name=adam"], "did you mean 'optimizer'"),
    "unknown field": ([DIGITS, "--config.optimizer.lr=0.1"], "has no field 'lr'"),
    "group": ([DIGITS, "--config.model=cnn"], "is a group; set one of its fields: name"),
    "not an integer": ([DIGITS, "--config.batch_size=64k"], "must be an integer"),
    "not a number": ([DIGITS, "--config.num_epochs=many"], "must be a number"),
    "below range": ([DIGITS, "--config.batch_size=-8"], "must be >= 1"),
    "not finite": ([DIGITS, "--config.optimizer.learning_rate=inf"], "must be"),
    "no value": ([DIGITS, "--config.seed"], "has no value"),
    "unknown flag": ([DIGITS, "--wrokdir=x"], "Did you mean: workdir"),
    "stray word": ([DIGITS, "adam"], "unexpected argument 'adam'"),
    "unknown model": ([DIGITS, "--config.model.name=resnet-20"], "did you mean 'resnet20'"),
    "unknown optimizer": ([DIGITS, "--config.optimizer.name=adamw2"], "did you mean 'adamw'"),
    "option of another model": ([DIGITS, "--config.model.stem=imagenet"], "set model.stem=None"),
    "unknown data": ([DIGITS, "--config.data.name=mnits"], "is no known data set"),
    "data not prepared": ([DIGITS, "--config.data.name=tfds:food101", "--config.data.dir={tmp}"], "is not prepared"),
    "data as TFRecord": ([DIGITS, "--config.data.name=tfds:old", "--config.data.dir={tmp}/tfds"], "convert"),
    "std of zero": ([DIGITS, "--config.data.mean=(0.5,)", "--config.data.std=(0.0,)"], "must be > 0"),
    "top-5 of ten": ([DIGITS, "--config.checkpoint.best_metric=top5_accuracy"], "is not measured with 10 classes"),
    "unknown split": ([DIGITS, "--config.data.train_split=training"], "did you mean 'train'"),
    "mean of three for grey": ([DIGITS, "--config.data.mean=(0.5,0.5,0.5)"], "one a channel"),
    "images too small": ([DIGITS, "--config.model.name=lenet5", "--config.model.dropout_rate=0"], "12"),
    "crop too wide": ([DIGITS, "--config.augment.crop_padding=8"], "at most 7"),
    "set too large for steps a call": (
        [DIGITS, "--config.data.resident=false", "--config.steps_per_call=4"], "streaming takes one step a call",
    ),
    "does not accumulate": ([DIGITS, "--config.optimizer.accumulate=5"], "does not divide"),
    "does not divide over devices": ([DIGITS, "--config.batch_size=50"], "does not divide over 8 devices"),
    "too few devices": ([DIGITS, "--config.num_devices=16"], "there are 8 cpu devices"),
    "no such platform": ([DIGITS, "--config.platform=tpu"], "has no device here"),
    "workdir is a file": ([DIGITS, "--workdir={tmp}/file"], "is a file"),
    "workdir of something else": ([DIGITS, "--workdir={tmp}/stranger"], "holds no run, but has 'thesis.tex'"),
    "workdir of another experiment": ([DIGITS, "--workdir={tmp}/other"], "holds a run of 'cifar10'"),
    "workdir with other settings": ([DIGITS, *SHORT, "--workdir={whole}", "--config.seed=5"], "seed (0 -> 5)"),
    "workdir that cannot be": ([DIGITS, "--workdir=/proc/nothing/here"], "cannot be written"),
    "workdir with a backslash": ([DIGITS, "--workdir=a\\b"], "name with a backslash"),
    "workdir empty": ([DIGITS, "--workdir="], "--workdir is empty"),
    "step schedule without steps": ([DIGITS, "--config.schedule.name=step", "--config.schedule.warmup_epochs=0"],
                                    "needs schedule.step_epochs"),
}  # fmt: skip
HOSTILE_EVALUATE = {
    "no run": ([], "no run given; pass --workdir"),
    "not a run": (["--workdir={tmp}/stranger"], "holds no run"),
    "no folder": (["--workdir={tmp}/nowhere"], "holds no run"),
    "unknown split": (["--workdir={whole}", "--split=tset"], "did you mean 'test'"),
    "unknown step": (["--workdir={whole}", "--step=59"], "there are checkpoints of steps"),
    "damaged config": (["--workdir={tmp}/damaged"], "cannot be read"),
}


@pytest.fixture(scope="module")
def traps(tmp_path_factory, whole):
    saved = json.loads((whole[0] / "config.json").read_text())
    folder = tmp_path_factory.mktemp("traps")
    (folder / "file").write_text("")
    for name, file, text in (
        ("stranger", "thesis.tex", "years of work"),
        ("other", "config.json", json.dumps({**saved, "experiment": "cifar10"})),
        ("damaged", "config.json", '{"experiment": "digi'),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)
    fake_tfds.write_set(
        folder / "tfds", "old", splits={"train": 4, "test": 2}, image_shape=(8, 8, 1), file_format="tfrecord"
    )
    return folder


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [("main", *case) for case in HOSTILE.values()] + [("evaluate", *case) for case in HOSTILE_EVALUATE.values()],
    ids=[*HOSTILE, *(f"evaluate: {name}" for name in HOSTILE_EVALUATE)],
)
def test_a_hostile_afternoon(module, arguments, message, traps, whole):
    arguments = [argument.format(tmp=traps, whole=whole[0]) for argument in arguments]
    if module == "main" and not any(argument.startswith("--workdir") for argument in arguments):
        arguments.append(f"--workdir={traps}/fresh")
    before = (whole[0] / "metrics.jsonl").read_bytes()
    code, output, errors = run_here(*arguments, module=module)
    assert code == 2, (output, errors)
    assert errors.count("\n") == 1, errors
    assert errors.startswith("jaxcnn: ")
    assert message in errors
    assert "first step" not in output
    assert not (traps / "fresh").exists(), "a command that is refused leaves nothing behind"
    assert (traps / "stranger" / "thesis.tex").read_text() == "years of work"
    assert (whole[0] / "metrics.jsonl").read_bytes() == before


def test_a_platform_that_is_not_there():
    code, _, errors = run(DIGITS, "--workdir=/tmp/none-of-this", JAX_PLATFORMS="cuda")
    assert (code, errors.count("\n")) == (2, 1)
    assert "JAX_PLATFORMS=cuda has no device here" in errors


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    """`… | head -1`"""
    process = start(DIGITS, *SHORT, f"--workdir={tmp_path / 'piped'}")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "piped" / "summary.json").exists()


@pytest.mark.slow
def test_evaluate_finds_data_that_have_moved(tmp_path):
    fake_tfds.write_set(tmp_path / "here", splits={"train": 60, "test": 20}, image_shape=(8, 8, 1))
    options = ["--config.data.name=tfds:shapes", "--config.batch_size=8", f"--workdir={tmp_path / 'run'}"]
    code, _, errors = run_here(DIGITS, *SHORT, *options, f"--config.data.dir={tmp_path / 'here'}")
    assert code == 0, errors
    (tmp_path / "here").rename(tmp_path / "there")
    code, _, errors = run_here(f"--workdir={tmp_path / 'run'}", module="evaluate")
    assert code == 2
    assert "is not prepared" in errors
    code, output, _ = run_here(
        f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path / 'there'}", "--nocalibrate", module="evaluate"
    )
    assert code == 0
    assert json.loads(output.splitlines()[-1])["num_examples"] == 20


def test_nan_ends_with_exit_code_1_and_one_line(tmp_path):
    code, _, errors = run_here(
        DIGITS, "--config.model.name=mlp", "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e15",
        "--config.optimizer.weight_decay=0", "--config.num_devices=1", f"--workdir={tmp_path / 'nan'}",
    )  # fmt: skip
    assert code == 1
    assert re.fullmatch(r"jaxcnn: NaN or Inf at step \d+, first in .*\n", errors)
    assert not (tmp_path / "nan" / "summary.json").exists()


def test_damaged_data_end_with_exit_code_1(tmp_path):
    folder = fake_tfds.write_set(tmp_path / "tfds", splits={"train": 40, "test": 9}, image_shape=(8, 8, 1))
    shard = next(folder.glob("*train*00000-of*"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    code, _, errors = run_here(
        DIGITS, "--config.data.name=tfds:shapes", f"--config.data.dir={tmp_path / 'tfds'}", "--config.batch_size=8",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 1
    assert errors.count("\n") == 1
    assert "damaged" in errors or "records" in errors


def test_rows_are_complete(whole):
    assert [row["step"] for row in rows(whole[0], "validation")] == [21, 41, 60]


@pytest.mark.slow
def test_without_validation(tmp_path):
    """Trained on all of train; the last weights are measured on test, once."""
    options = [*SHORT, "--config.data.validation_fraction=0", f"--workdir={tmp_path / 'run'}"]
    code, _, errors = run_here(DIGITS, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert "set checkpoint.keep_best=0" in errors
    code, output, errors = run_here(DIGITS, *options, "--config.checkpoint.keep_best=0")
    assert (code, errors) == (0, "")
    assert "1,437 train / 360 test" in output
    assert output.count("| train  loss") == 3  # a line an epoch, as with validation
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["weights"], set(summary["splits"])) == ("last, ema", {"test"})
    code, output, errors = run_here(f"--workdir={tmp_path / 'run'}", module="evaluate")
    assert code == 0, errors
    assert json.loads(output.splitlines()[-1])["accuracy"] == pytest.approx(summary["splits"]["test"]["accuracy"])
    code, _, errors = run_here(f"--workdir={tmp_path / 'run'}", "--split=validation", module="evaluate")
    assert (code, errors.count("\n")) == (2, 1)
    assert "--split=validation: the run has none" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),  # the user's word
    ],
)
def test_huge_pages_are_asked_for_once(before, after):
    program = (
        "import os, sys; from jaxcnn.machine import begin_anew; print('begun'); begin_anew(); "
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], os.getpid())"
    )
    env = {name: value for name, value in environment().items() if name != "GLIBC_TUNABLES"} | before
    process = subprocess.Popen(
        [sys.executable, "-c", program, "a b", "--c"], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines == ["begun"] * (1 if "hugetlb" in before.get("GLIBC_TUNABLES", "") else 2) + [
        f"{after} ['a b', '--c'] {process.pid}"  # signals still find it
    ]


# ---- Places, terminals and outcomes, told by commands that do nothing else.


@pytest.fixture(scope="module")
def latin1(tmp_path_factory):
    """Environment of a terminal in Latin-1; empty where the system cannot make one."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    if not shutil.which("localedef") or subprocess.run(command, capture_output=True).returncode:
        return {}
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


def test_names_are_utf8_in_any_locale_and_a_terminal_gets_what_it_can_show(tmp_path, latin1):
    """The names of classes on disk, in what is written and in what is printed."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    for name in ("café", "猫", "[b]x :smile:", "esc\x1b]0;x\x07"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "set" / name / f"{number}.png")
    ascii_terminal = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    listed = {}
    for number, (changes, encoding, expected) in enumerate((
        ({"LC_ALL": "C.UTF-8"}, "utf-8", ("café", "猫", "━")),
        (ascii_terminal, "ascii", (r"caf\xe9", r"\u732b", "---")),
        (latin1 or ascii_terminal, "latin-1", ("café" if latin1 else r"caf\xe9", r"\u732b", "---")),
    )):  # fmt: skip
        file = tmp_path / f"{number}.csv"
        process = start("check", f"folder:{tmp_path / 'set'}", f"--csv={file}", module="data", text=False, **changes)
        output, errors = (each.decode(encoding) for each in process.communicate(timeout=120))
        assert process.returncode == 1, errors  # the same pictures, again and again
        for word in (*expected, "[b]x :smile:", r"esc\x1b]0;x\x07"):
            assert word in output
        assert not re.search("[\x00-\x08\x0b-\x1f]", output + errors)
        listed[encoding] = file.read_bytes()
    assert "猫/0.png" in listed["utf-8"].decode()
    assert listed["ascii"] == listed["latin-1"] == listed["utf-8"]


@pytest.mark.parametrize(("raised", "code", "said"), [
    ("OSError(28, 'No space left on device', '/x/\\x1b.csv')", 1, r"jaxcnn: /x/\x1b.csv: No space left on device"),
    ("UserError('a\\nb\\x1b[2J')", 2, r"jaxcnn: a b\x1b[2J"),
    ("MemoryError('5 GiB')", 1, "jaxcnn: out of memory (5 GiB); lower --batch_size"),
    ("type('JaxRuntimeError', (Exception,), {})('RESOURCE_EXHAUSTED')", 1,
     "jaxcnn: out of memory (RESOURCE_EXHAUSTED); lower --batch_size"),
    ("ValueError('a fault of ours \\x1b[2J')", 1, r"ValueError: a fault of ours \x1b[2J"),
])  # fmt: skip
def test_every_outcome_has_its_code_and_line(raised, code, said, capsys, monkeypatch):
    for name in ("begin_anew", "take_over", "quiet_libraries"):
        monkeypatch.setattr(command_lib, name, lambda: None)
    monkeypatch.setattr(command_lib.stopping, "at_once", lambda: None)

    def command(argv, since):
        raise eval(raised)

    with pytest.raises(SystemExit) as left:
        command_lib.run_command(command, less_memory="lower --batch_size")
    lines = capsys.readouterr().err.splitlines()
    assert (left.value.code, lines[-1]) == (code, said)
    assert len(lines) == 1 or "a fault" in said


def test_what_libraries_say_is_a_line_and_a_full_output_is_said(tmp_path):
    code = (
        "import logging, sys, warnings\n"
        "def command(argv, start):\n"
        "    warnings.warn('of \\x1b[2J')\n"
        "    quiet = logging.getLogger('library')\n"
        "    quiet.addHandler(logging.NullHandler())\n"
        "    quiet.warning('not for a terminal')\n"
        "    try:\n        raise ValueError('lost')\n"
        "    except ValueError:\n        logging.getLogger('asyncio').exception('two\\nlines')\n"
        "    print('x', chr(0x732b))\n"
        "    return 0\n"
        "from jaxcnn.command import run_command; run_command(command)"
    )
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    *said, last = found.stderr.splitlines()
    assert said == [r"jaxcnn: UserWarning: of \x1b[2J", "jaxcnn: two lines"]
    assert re.fullmatch("jaxcnn: .*No space left on device", last)
    assert found.returncode == 1


@pytest.mark.parametrize(
    "where", ["time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"], ids=["Python", "C"]
)
def test_a_signal_ends_what_does_not_return(where):
    """The second is as a compilation that holds on to the interpreter's main thread, but lets others go on."""
    code = (
        "import hashlib, time\n"
        "def command(argv, start):\n"
        "    print('begun', flush=True)\n"
        f"    {where}\n"
        "from jaxcnn.command import run_command; run_command(command)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (
        75, "jaxcnn: SIGTERM: stopped outside of training; the same command goes on\n",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "raise KeyboardInterrupt", "\0"])
def test_an_experiment_that_leaves_is_wrong(tmp_path, text):
    (tmp_path / "leaves.py").write_text(text)
    with pytest.raises(UserError, match=r"leaves.py: "):
        load_config(["x", f"--config={tmp_path / 'leaves.py'}"], flag_values=flags.FlagValues())


@pytest.mark.parametrize("name", ["--flagfile=/", "-flagfile", "--config=" + "x" * 300])
def test_names_of_no_file_are_wrong(name):
    with pytest.raises(UserError, match=r"is not taken|does not exist"):
        load_config(["x", name, DIGITS], flag_values=flags.FlagValues())
