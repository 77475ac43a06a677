"""The sweep: what varies, who runs what, and a study that is killed at any moment."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from jaxcnn import files
from jaxcnn.ablation import claims as claims_lib
from jaxcnn.ablation import running
from jaxcnn.ablation.claims import Claims, is_alive, this_process
from jaxcnn.ablation.running import Failure, is_disk_full, outcome_of, stand
from jaxcnn.ablation.study import StudyRun
from jaxcnn.ablation.variation import Axis, grid, one_at_a_time, parse_axes, parse_axis, parse_seeds
from jaxcnn.ablation.workers import shares
from jaxcnn.config import Config
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.run import stopping
from tests.commands import run_here, start

DIGITS = "--config=experiments/digits.py"
SHORT = [
    "--config.num_steps=24", "--config.log_every_steps=7", "--config.model.name=mlp",
    "--config.checkpoint.every_steps=5", "--config.tensorboard=false", "--config.num_devices=1",
]  # fmt: skip
RATES = "--over=optimizer.learning_rate=0.002,0.02"
DROPOUT = "--over=model.dropout_rate=0.3,0"


def sweep(*arguments):
    return run_here(*arguments, module="sweep")


# ---- what varies


def test_values_are_read_as_the_config_reads_them():
    assert parse_axis("augment.crop_area=(0.1, 1.0),(0.5, 1.0)").values == ((0.1, 1.0), (0.5, 1.0))
    assert parse_axis("model.dropout_rate=none, 0,0.5").values == (None, 0.0, 0.5)
    assert parse_axis("augment.flip=true,false").values == (True, False)
    assert parse_axis("model.name=cnn,mlp").values == ("cnn", "mlp")


def test_names_are_the_shortest_that_are_plain():
    axes = parse_axes(["optimizer.learning_rate=1e-3,0.1", "model.name=cnn", "augment.crop_area=(0.5, 1.0)"])
    assert next(iter(grid(Config(), axes))) == "learning_rate=0.001, model.name=cnn, crop_area=(0.5, 1)"


def test_the_grid_begins_with_the_base_where_it_has_it():
    axes = [Axis("optimizer.learning_rate", (0.5, 0.1)), Axis("batch_size", (32, 128))]
    config = Config(batch_size=128)  # and a learning rate of 0.1
    variants = grid(config, axes)
    assert list(variants) == [
        "learning_rate=0.1, batch_size=128", "learning_rate=0.5, batch_size=32",
        "learning_rate=0.5, batch_size=128", "learning_rate=0.1, batch_size=32",
    ]  # fmt: skip
    assert variants["learning_rate=0.1, batch_size=32"] == {"optimizer.learning_rate": 0.1, "batch_size": 32}
    assert list(one_at_a_time(config, axes)) == ["base", "learning_rate=0.5", "batch_size=32"]
    assert grid(Config(), []) == {"base": {}}


def test_a_random_part_of_the_grid_repeats_nothing_and_grows():
    axes = [Axis("batch_size", tuple(range(1, 1001))), Axis("num_steps", tuple(range(1, 10_001)))]
    few, more = (list(grid(Config(), axes, count=count)) for count in (20, 50))
    assert len(set(more)) == 50
    assert more[:20] == few
    assert list(grid(Config(seed=1), axes, count=20)) != few
    assert len(grid(Config(), [Axis("batch_size", (1, 2, 3))], count=3)) == 3


def test_seeds():
    assert parse_seeds("5") == (0, 1, 2, 3, 4)
    assert parse_seeds("3,5,8") == (3, 5, 8)


STUDY = """
from experiments.digits import get_config
from jaxcnn.ablation import Study
def get_study(): {body}
"""
WRONG = {
    "nothing": ([], "no study given"),
    "no experiment there": (["--config=experiments/digit.py"], "did you mean"),
    "unknown flag": ([DIGITS, "--sedes=3"], "Did you mean: seeds"),
    "stray word": ([DIGITS, "fast"], "unexpected argument"),
    "no field": ([DIGITS, "--over=optimizer.lr=1,2"], "has no field 'lr'"),
    "a group": ([DIGITS, "--over=optimizer=1,2"], "is a group"),
    "no values": ([DIGITS, "--over=batch_size"], "write --over FIELD=VALUE"),
    "an empty value": ([DIGITS, "--over=batch_size=8,,9"], "write --over FIELD=VALUE"),
    "no integer": ([DIGITS, "--over=batch_size=8,many"], "must be an integer"),
    "out of range": ([DIGITS, "--over=batch_size=8,-8"], "variant 'batch_size=-8': batch_size=-8"),
    "a value twice": ([DIGITS, "--over=batch_size=8,8"], "names 8 twice"),
    "a field twice": ([DIGITS, "--over=batch_size=8", "--over=batch_size=9"], "names batch_size twice"),
    "the seed": ([DIGITS, "--over=seed=1,2"], "varied by --seeds"),
    "no seeds": ([DIGITS, "--seeds=0"], "a study has 1 to"),
    "seeds of words": ([DIGITS, "--seeds=a,b"], "neither a number of seeds"),
    "a seed twice": ([DIGITS, "--seeds=3,3"], "names a seed twice"),
    "one fold": ([DIGITS, "--folds=1"], "folds"),
    "too many variants": ([DIGITS, *(f"--over={name}={','.join(map(str, range(1, 200)))}"
                                     for name in ("batch_size", "num_steps", "log_every_steps"))], "--random=20"),
    "more than the grid": ([DIGITS, "--over=batch_size=8,9", "--random=3"], "there are 2 combinations"),
    "random of nothing": ([DIGITS, "--random=3"], "no grid to choose from"),
    "two choices": ([DIGITS, "--over=batch_size=8,9", "--random=1", "--one_at_a_time"], "leave one of them out"),
    "unknown split": ([DIGITS, "--split=train"], "test"),
    "unknown metric": ([DIGITS, *SHORT, "--metric=acuracy", "--workdir={tmp}/x"], "did you mean 'accuracy'"),
    "metric not recorded": ([DIGITS, *SHORT, "--metric=macro_f1", "--workdir={tmp}/x"], "--config.metrics="),
    "unknown model": ([DIGITS, "--over=model.name=cnn,ccn", "--workdir={tmp}/x"], "variant 'model.name=ccn'"),
    "too many workers": ([DIGITS, "--workers=999"], "lower it"),
    "workdir empty": ([DIGITS, "--workdir="], "--workdir is empty"),
    "workdir in a bucket": ([DIGITS, "--workdir=gs://bucket/study"], "local folder"),
    "workdir of something else": ([DIGITS, "--workdir={tmp}/stranger"], "holds no study"),
    "no plan there": (["--workdir={tmp}/stranger"], "holds no study"),
    "over without a config": (["--over=batch_size=8", "--workdir={tmp}/x"], "pass --config"),
    "two studies": ([DIGITS, "--study={tmp}/none.py"], "leave --config or --study out"),
    "no module": (["--study={tmp}/absent.py"], "does not exist"),
    "a module without get_study": (["--study=experiments/digits.py"], "defines no get_study()"),
    "a module that fails": (["--study={tmp}/fails.py"], "ZeroDivisionError"),
    "a module that returns none": (["--study={tmp}/none.py"], "must return a jaxcnn.ablation.Study, not NoneType"),
    "a variant of no field": (["--study={tmp}/field.py"], "has no field 'lr'"),
    "a wrong override": (["--study={tmp}/good.py", "--config.batch_size=x"], "must be an integer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traps")
    bodies = {
        "fails": "return 1 / 0", "none": "return None",
        "field": "return Study(get_config(), {'a': {'optimizer.lr': 1}})",
        "good": "return Study(get_config(), {'base': {}, 'wide': {'batch_size': 32}}, seeds=(0, 1))",
    }  # fmt: skip
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(STUDY.format(body=body))
    (folder / "stranger").mkdir()
    (folder / "stranger" / "thesis.tex").write_text("mine")
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_wrong_commands_end_in_one_line(case, traps):
    arguments, words = WRONG[case]
    code, _, errors = sweep(*(each.format(tmp=traps) for each in arguments))
    assert code == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert words in errors
    assert not (traps / "x").exists()  # nothing is left behind


def test_a_module_and_its_overrides(traps):
    code, output, errors = sweep(f"--study={traps / 'good.py'}", *SHORT, f"--workdir={traps / 'new'}", "--dry_run")
    assert (code, errors) == (0, "")
    assert "4 runs, 4 left: how long they take is not known" in output
    assert "predicted peak a device, of 'base'" in output
    assert not (traps / "new").exists()


def test_shares_are_equal():
    cores = len(os.sched_getaffinity(0))
    parts = shares(cores, "cpu")
    assert sorted(core for part in parts for core in part.cores) == sorted(os.sched_getaffinity(0))
    with pytest.raises(UserError, match="lower it"):
        shares(cores + 1, "cpu")


def test_gpus_are_shared_by_their_names(monkeypatch):
    monkeypatch.setattr("jaxcnn.ablation.workers.cuda_devices", lambda: ["0", "1", "2", "GPU-5"])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("JAX_PLATFORMS")
    assert [(part.devices, len(part.cores)) for part in shares(2, None)] == [("0,1", 4), ("2,GPU-5", 4)]
    with pytest.raises(UserError, match="4 accelerators"):
        shares(5, None)


# ---- claims

GONE = "999999999@1@" + (this_process() or "@@").split("@", 2)[2]


def write_claim(folder: Path, run: str, generation: int, **changes) -> Path:
    content = {"host": "here", "process": GONE, "step": 3, "kills": 0, "released": False} | changes
    folder.mkdir(exist_ok=True)
    (folder / f"{run}.{generation}").write_text(json.dumps(content))
    return folder / f"{run}.{generation}"


def contend(folder, barrier, names, won):
    claims = Claims(folder)
    taken = []
    for name in names:
        barrier.wait()
        claim = claims.take(name, step=0)
        taken += [] if claim is None else [(name, claim.generation)]
    won.send(taken)
    won.recv()  # lives until all have been told: its claims are those of a living process


def test_of_two_processes_one_wins_each_of_200_races(tmp_path):
    names = [f"run{number}" for number in range(200)]
    for name in names[100:]:  # of these a process that is gone has the first claim
        write_claim(tmp_path, name, 1)
    context = multiprocessing.get_context("spawn")
    barrier, pipes, processes = context.Barrier(2), [], []
    for _ in range(2):
        mine, theirs = context.Pipe()
        processes.append(context.Process(target=contend, args=(tmp_path, barrier, names, theirs)))
        processes[-1].start()
        pipes.append(mine)
    won = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join()
    assert sorted(won[0] + won[1]) == sorted((name, 1 + (name in names[100:])) for name in names)
    assert won[0]
    assert won[1]


def test_a_claim_is_taken_over_once_its_process_is_gone(tmp_path):
    claims = Claims(tmp_path)
    first = claims.take("run", step=0)
    assert first is not None
    assert claims.take("run", step=0) is None  # this process lives
    claims.release(first)
    second = claims.take("run", step=0)
    assert second is not None
    assert (second.generation, second.kills) == (2, 0)
    write_claim(tmp_path, "run", 2, step=7, kills=1)
    third = claims.take("run", step=7)
    assert third is not None
    assert third.kills == 2  # no checkpoint since
    write_claim(tmp_path, "run", 3, step=7, kills=2)
    fourth = claims.take("run", step=9)
    assert fourth is not None
    assert fourth.kills == 1


def test_of_another_host_silence_counts_by_the_clock_of_the_files(tmp_path, monkeypatch):
    file = write_claim(tmp_path, "run", 1, process="5@6@another boot@another space")
    assert is_alive("5@6@another boot@another space") is None
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this host's own clock is of no account
    assert Claims(tmp_path).take("run", step=0) is None
    os.utime(file, (file.stat().st_mtime - claims_lib.SILENT_SECONDS - 5,) * 2)
    assert Claims(tmp_path).take("run", step=0) is not None
    assert not list(tmp_path.glob(".clock*"))


def test_a_claim_that_is_being_written_is_another_s(tmp_path):
    (tmp_path / "run.1").touch()
    assert Claims(tmp_path).take("run", step=0) is None


def test_who_was_given_up_is_told_and_beats_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_lib, "BEAT_SECONDS", 0.01)
    claims, told = Claims(tmp_path), multiprocessing.Event()
    claim = claims.take("run", step=0)
    assert claim is not None
    file = tmp_path / "run.1"
    os.utime(file, (0, 0))
    with claims.held(claim, overtaken=told.set):
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0
        assert not told.is_set()
        write_claim(tmp_path, "run", 2)
        assert told.wait(10)
    claims.release(claim)  # no longer its to release
    assert not json.loads(file.read_text())["released"]


def stopped(folder):
    """Has a claim, and is stopped where nothing can be raised, as in a compilation."""
    claims = Claims(folder)
    claim = claims.take("run", step=0)
    assert claim is not None
    stopping.while_importing()
    with claims.held(claim, overtaken=os.abort):
        signal.raise_signal(signal.SIGTERM)


def test_a_stop_is_no_kill(tmp_path):
    """However often: else a healthy run would be given up."""
    for _ in range(running.MOST_KILLS + 1):
        process = multiprocessing.get_context("spawn").Process(target=stopped, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == Preempted.exit_code
    claim = Claims(tmp_path).take("run", step=0)
    assert claim is not None
    assert (claim.generation, claim.kills) == (running.MOST_KILLS + 2, 0)


# ---- studies


def outcomes(folder: Path) -> dict[str, tuple[str, dict]]:
    """Of each run what does not depend on the clock."""
    found = {}
    for file in sorted(folder.glob("runs/*/*/summary.json")):
        summary = json.loads(file.read_text())
        kept = {name: value for name, value in summary.items() if name not in ("seconds", "images_per_second")}
        found[str(file.parent.relative_to(folder))] = ((file.parent / "metrics.jsonl").read_text(), kept)
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """2 x 2 variants, 2 seeds, in this process."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    code, output, errors = sweep(DIGITS, RATES, DROPOUT, "--seeds=2", *SHORT, f"--workdir={folder}")
    assert (code, errors) == (0, ""), errors
    return folder, output


def test_a_study_runs_and_is_finished(study):
    folder, output = study
    assert len(outcomes(folder)) == 8
    assert output.count("finished: ") == 8
    code, output, _ = sweep(f"--workdir={folder}")  # what the folder says is enough
    assert code == 0
    assert "8 finished" in output
    assert "finished: " not in output
    code, output, _ = sweep(f"--workdir={folder}", "--seeds=3", "--dry_run")
    assert "12 runs, 4 left: about" in output


def test_its_runs_are_those_of_main(study, tmp_path):
    """Also where another seed's pieces served."""
    folder, _ = study
    for variant, options in (("base", []), ("other", ["--config.optimizer.learning_rate=0.02"])):
        code, _, _ = run_here(DIGITS, *SHORT, "--config.seed=1", *options, f"--workdir={tmp_path / variant}")
        assert code == 0
        metrics = (tmp_path / variant / "metrics.jsonl").read_text()
        assert metrics in [rows for name, (rows, _) in outcomes(folder).items() if name.endswith("seed-1")]
    run = next(folder.glob("runs/*/seed-1"))
    assert "test" in (run / "run.log").read_text()
    assert run_here(f"--workdir={run}", module="evaluate")[0] == 0


def test_folds(tmp_path):
    options = ["--config.num_steps=6", "--folds=2", "--seeds=1", f"--workdir={tmp_path / 'study'}"]
    code, _, errors = sweep(DIGITS, *SHORT, *options)
    assert (code, errors) == (0, "")
    assert sorted(outcomes(tmp_path / "study")) == ["runs/base/seed-0-fold-1", "runs/base/seed-0-fold-2"]


def test_a_run_that_fails_is_a_row(tmp_path):
    """A loss that is not finite, and a config that is refused late."""
    folder = tmp_path / "study"
    rates = "--over=optimizer.learning_rate=0.002,1e30"
    command = [DIGITS, rates, "--over=augment.crop_padding=1,9", "--seeds=1", *SHORT, f"--workdir={folder}"]
    code, output, errors = sweep(*command)
    assert code == 1
    assert errors == "jaxcnn: 3 of the runs failed; --retry_failed runs them again\n"
    assert "1 finished, 3 failed" in output
    lines = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert sum("NaN or Inf" in line for line in lines) == 1
    assert sum("at most 7" in line for line in lines) == 2
    failed = {json.loads(file.read_text())["exit_code"] for file in folder.glob("runs/*/*/failed.json")}
    assert failed == {1, 2}
    logs = {file: file.read_text() for file in folder.glob("runs/*/*/run.log")}
    assert sweep(*command)[0] == 1
    assert logs == {file: file.read_text() for file in folder.glob("runs/*/*/run.log")}  # nothing ran again
    assert sweep(*command, "--retry_failed")[0] == 1
    assert sum(file.read_text() != text for file, text in logs.items()) == 3


def test_a_run_that_takes_its_process_along_is_given_up(tmp_path):
    folder, run = tmp_path / "study", StudyRun("base", 0)
    write_claim_of = folder / running.CLAIMS
    folder.mkdir()
    command = [DIGITS, "--seeds=1", *SHORT, f"--workdir={folder}"]
    assert sweep(*command, "--dry_run")[0] == 0
    write_claim_of.mkdir()
    write_claim(write_claim_of, running.claim_name(run), 1, step=0, kills=running.MOST_KILLS - 1)
    plan = tmp_path / "other"
    assert sweep(*command[:-1], f"--workdir={plan}", "--config.num_steps=1")[0] == 0
    (folder / "plan.json").write_text((plan / "plan.json").read_text().replace('"num_steps": 1', '"num_steps": 24'))
    code, output, _ = sweep(*command)
    assert code == 1
    assert f"{running.MOST_KILLS} processes in a row died in it" in output
    assert sweep(*command, "--retry_failed")[0] == 0


def test_a_run_that_a_command_of_its_own_trains_is_left_to_it(tmp_path):
    folder, run = tmp_path / "study", StudyRun("base", 0)
    workdir = folder / run.folder
    command = [DIGITS, "--seeds=1", *SHORT, f"--workdir={folder}"]
    assert sweep(*command)[0] == 0
    (workdir / "summary.json").unlink()
    with files.locked(workdir / ".lock"):
        before = sorted((folder / running.CLAIMS).iterdir())
        code, output, _ = sweep(*command, "--nowait")
        assert code == 75
        assert "1 left to others" in output
        assert sorted((folder / running.CLAIMS).iterdir()) == before  # nothing is claimed again and again
    assert sweep(*command)[0] == 0


def test_a_full_disk_ends_the_study_not_a_run(tmp_path, monkeypatch):
    def train(*arguments, **options):
        raise RunError("writing failed") from OSError(28, os.strerror(28))

    monkeypatch.setattr(running, "train", train)
    command = [DIGITS, "--seeds=2", *SHORT, f"--workdir={tmp_path / 'study'}"]
    code, _, errors = sweep(*command)
    assert code == 1
    assert errors.count("\n") == 1
    assert "make room" in errors
    monkeypatch.undo()
    code, output, _ = sweep(*command)
    assert code == 0
    assert "2 finished" in output


def test_what_a_full_disk_is():
    def raised(kind):
        try:
            try:
                raise OSError(28, os.strerror(28))
            except OSError as error:
                raise kind("a save failed") from error
        except kind as error:
            return error

    assert is_disk_full(raised(RunError))
    assert is_disk_full(ValueError("RESOURCE_EXHAUSTED: No space left on device"))
    assert not is_disk_full(RunError("NaN or Inf"))


def test_a_failure_that_cannot_be_read_is_a_failure(tmp_path):
    (tmp_path / "failed.json").write_text("{}")
    outcome = outcome_of(tmp_path)
    assert isinstance(outcome, Failure)
    assert "cannot be read" in outcome.line


def test_a_signal_that_training_just_missed_stops_the_study():
    with pytest.raises(Preempted, match="SIGTERM"), stopping.between_steps():
        signal.raise_signal(signal.SIGTERM)


# ---- killed


def children(process: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def num_rows(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("runs/*/*/metrics.jsonl"))


def killed_study(folder: Path, command: list[str], *, kills: int, generator: random.Random) -> None:
    """Runs a study to its end, with so many of its processes killed on the way, each after some progress."""
    process = start(*command, f"--workdir={folder}", module="sweep")
    while kills:
        seen, deadline = num_rows(folder), time.monotonic() + 240
        while num_rows(folder) <= seen + 1 and process.poll() is None:
            assert time.monotonic() < deadline, (folder / "runs").exists()
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        time.sleep(generator.uniform(0, 0.3))
        workers = [each for each in children(process.pid) if b"spawn_main" in command_line(each)]
        which = generator.choice(("parent", "worker", "all"))
        for each in {"parent": [process.pid], "worker": workers[:1], "all": [process.pid, *workers]}[which]:
            os.kill(each, signal.SIGKILL)
        kills -= 1
        if which != "worker":
            process.communicate(timeout=240)
            process = start(*command, f"--workdir={folder}", module="sweep")
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.terminate()
    assert process.returncode == 0, (output, errors)


def command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers by /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("kills", "seeds", "steps"), [(2, 1, 300), (10, 3, 400)])
def test_killed_at_random_moments_ends_as_if_it_never_was(tmp_path, kills, seeds, steps):
    workers = min(2, len(os.sched_getaffinity(0)))
    command = [DIGITS, DROPOUT, f"--seeds={seeds}", *SHORT, f"--config.num_steps={steps}", f"--workers={workers}"]
    command.append("--config.checkpoint.every_steps=20")
    generator = random.Random(kills)
    killed_study(tmp_path / "killed", command, kills=kills, generator=generator)
    killed_study(tmp_path / "whole", command, kills=0, generator=generator)
    assert len(outcomes(tmp_path / "whole")) == 2 * seeds
    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "whole")


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "study"
    command = [DIGITS, "--seeds=2", *SHORT, "--config.num_steps=2000", f"--workdir={folder}", "--workers=2"]
    process = start(*command, module="sweep")
    deadline = time.monotonic() + 240
    while num_rows(folder) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, (output, errors)
    assert len(errors.splitlines()) == 1
    runs = [StudyRun("base", seed) for seed in (0, 1)]
    assert len(stand(runs, folder).left) == 2
    claims = [json.loads(file.read_text()) for file in (folder / running.CLAIMS).iterdir()]
    assert claims
    assert all(each["released"] for each in claims)
