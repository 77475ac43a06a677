"""compare: what a study's folder says, what counts, what is written, and what is refused."""

import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from jaxcnn.ablation import results, tables, words
from jaxcnn.ablation.results import Asked, read_study
from jaxcnn.ablation.study import Study, StudyRun, write_plan
from jaxcnn.config import Config, to_dict
from jaxcnn.errors import UserError
from jaxcnn.terminal import PatientConsole
from tests.commands import run_here
from tests.runs import small_config

VARIANTS = {"base": {}, "slow": {"optimizer.learning_rate": 0.01}}
FINISHED = {
    "experiment": "digits", "status": "finished", "weights": "last", "platform": "cpu", "versions": {}, "step": 1,
    "epochs": 1.0, "num_params": 1, "num_devices": 1, "images_per_second": 1.0,
    "seconds": {"setup": 1, "compile": 1, "train": 1, "evaluate": 1, "save": 1},
}  # fmt: skip
DATA = {
    "name": "digits", "fingerprint": "abc", "image_shape": [8, 8, 1], "class_names": list("0123456789"),
    "num_examples": {"train": 1000, "test": 360}, "mean": [0.5], "std": [0.5],
}  # fmt: skip


def put_run(folder: Path, config: Config, score: float | None, **changes: Any) -> None:
    """A run's folder; without a score it is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    best = {"best_metric": "ema_accuracy", "higher_is_better": True}
    saved = {"experiment": "digits", "config": to_dict(config), "data": DATA, "best": best, **changes}
    (folder / "config.json").write_text(json.dumps(saved))
    if score is not None:
        values = {"loss": 1 - score, "accuracy": score, "num_examples": 360}
        (folder / "summary.json").write_text(json.dumps({**FINISHED, "splits": {"validation": values, "test": values}}))


def put_study(folder: Path, effects: dict[str, float], *, seeds=8, variants=None, **changes: Any) -> Study:
    """A study whose runs have finished: a seed's own noise, alike in all variants, an effect, and a little more."""
    of = Study(Config(), variants or VARIANTS, **{"seeds": tuple(range(seeds)), **changes})
    write_plan(epath.Path(folder), of, experiment="digits")
    generator = np.random.default_rng(0)
    noise: dict[Any, float] = {}
    for run in of.runs():
        noise.setdefault((run.seed, run.fold), generator.normal(0, 0.01))
        score = 0.9 + noise[run.seed, run.fold] + effects[run.variant] + generator.normal(0, 0.001)
        put_run(folder / run.folder, of.config_of(run), score)
    return of


def read(folder: Path, **asked: Any) -> results.Results:
    return read_study(epath.Path(folder), Asked(**asked))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A study of two variants and eight seeds, of which one is clearly worse."""
    folder = tmp_path_factory.mktemp("compare") / "study"
    put_study(folder, {"base": 0, "slow": -0.012})
    return folder


# ---- what it says


def test_the_command_prints_a_table_and_writes_the_same_bytes_again(whole):
    code, output, errors = run_here(whole, module="compare")
    assert (code, errors) == (0, "")
    for expected in ("accuracy (%) of test", "slow", "worse", "Against 'base': 0 better, 1 worse."):
        assert expected in output
    first = {name: (whole / f"study.{name}").read_bytes() for name in ("json", "csv", "md", "tex")}
    assert str(whole).encode() not in b"".join(first.values())
    assert run_here(whole, module="compare")[0] == 0
    assert first == {name: (whole / f"study.{name}").read_bytes() for name in first}
    content = json.loads(first["json"])
    slow = content["variants"]["slow"]
    assert slow["versus_base"]["verdict"] == "worse"
    assert slow["versus_base"]["p_holm"] == 2 / 2**8
    assert slow["overrides"] == VARIANTS["slow"]
    assert slow["runs"][0].keys() == {"seed", "fold", "folder", "status", "score"}
    scores = [run["score"] for run in slow["runs"]]
    assert slow["mean"] == pytest.approx(np.mean(scores))
    assert content["variants"]["base"]["versus_base"] is None


def test_the_sentence_may_be_published(whole):
    found = read(whole)
    of = found.variants["slow"].versus_base
    assert of is not None
    assert of.interval is not None
    low, high = sorted(-100 * each for each in (of.interval.low, of.interval.high))
    assert words.sentence(found, "slow") == (
        f"slow: test accuracy lower by {-100 * of.difference:.3f} points (95 % {low:.3f} to {high:.3f}, "
        "n = 8 paired seeds, p = 0.0078 sign-flip, Holm)."
    )
    assert words.sentence(found, "base").startswith("base: test accuracy 89.54 ± 0.94 % (standard")


@pytest.mark.parametrize(
    ("uncertainty", "decimals"), [(0.16, 2), (0.0016, 4), (1.6, 1), (16, 0), (1600, 0), (0, 2), (None, 2), (0.99, 2)]
)
def test_numbers_are_rounded_to_their_uncertainty(uncertainty, decimals):
    assert words.decimals_of(uncertainty) == decimals


def test_a_loss_is_better_when_it_is_lower_and_another_metric_is_exploration(whole):
    found = read(whole, metric="loss", base="slow", split="validation")
    of = found.variants["base"].versus_base
    assert of is not None
    assert (of.verdict, of.difference < 0) == ("better", True)
    assert found.explored == ("metric", "split", "base")
    assert any("choosing after looking is exploration" in each for each in words.notes(found))
    assert words.sentence(found, "base").endswith(", exploration).")
    assert not read(whole, metric="accuracy", split="test", base="base").explored
    assert not any("exploration" in each for each in words.notes(read(whole)))


def test_a_table_fits_80_columns_and_sorts(whole, tmp_path):
    variants = {name: {"batch_size": 8 + number} for number, name in enumerate(("base", "one", "two", "three"))}
    put_study(tmp_path / "s", {"base": 0, "one": -0.02, "two": 0.02, "three": 0.01}, variants=variants)
    found = read(tmp_path / "s")
    assert tables.order(found, by_mean=True) == ["base", "two", "three", "one"]
    assert tables.order(found, by_mean=False) == list(variants)
    text = io.StringIO()
    tables.show(found, list(variants), PatientConsole(file=text, width=80))
    assert sum(line.startswith(tuple(variants)) for line in text.getvalue().splitlines()) == 4
    assert not any(line.startswith(" ") and line.strip() for line in text.getvalue().splitlines())  # none is folded


# ---- what counts


def test_what_is_not_there_is_said_and_drops_its_pair(tmp_path):
    of = put_study(tmp_path / "s", {"base": 0, "slow": -0.01}, seeds=12)
    folder = tmp_path / "s"
    place = lambda variant, seed: folder / StudyRun(variant, seed).folder

    for name in ("config.json", "summary.json"):
        (place("slow", 0) / name).unlink()
    (place("slow", 1) / "summary.json").unlink()
    (place("slow", 1) / "failed.json").write_text('{"line": "loss is not finite\\u001b[2J", "exit_code": 1}')
    (place("slow", 2) / "summary.json").unlink()
    (place("slow", 3) / "summary.json").write_text("{")
    put_run(place("slow", 4), of.config_of(StudyRun("base", 4)), 0.99)  # strangers'
    put_run(place("base", 5), of.config_of(StudyRun("base", 6)), 0.99)  # a copy of another seed's
    put_run(place("base", 7), of.config_of(StudyRun("base", 7)), float("nan"))
    put_run(place("slow", 9), of.config_of(StudyRun("slow", 9)), 1e300)  # no float32
    put_run(place("base", 8), of.config_of(StudyRun("base", 8)), 0.9, data={**DATA, "fingerprint": "other"})

    found = read(folder)
    status = {(each.run.variant, each.run.seed): (each.status, each.reason) for each in found.runs}
    assert status["slow", 0] == ("missing", None)
    assert status["slow", 1] == ("failed", r"loss is not finite\x1b[2J")
    assert status["slow", 2] == ("unfinished", None)
    assert status["slow", 3] == ("unfinished", "its summary.json is damaged")
    assert status["slow", 4] == ("refused", "its config is not the plan's: optimizer.learning_rate")
    assert status["base", 5] == ("refused", "its config is not the plan's: seed")
    assert status["base", 7] == ("finished", "its test accuracy is not finite")
    assert status["slow", 9] == ("finished", "its test accuracy is not finite")
    assert status["base", 8] == ("refused", "its data are not those of the runs before it")
    versus = found.variants["slow"].versus_base
    assert versus is not None
    assert (versus.pairs, found.variants["slow"].summary.n) == (3, 6)
    assert "1 of both sides' runs failed" in words.sentence(found, "slow")
    text = " ".join(words.notes(found))
    for expected in (
        "1 of 24 runs failed", "3 of 24 runs are not counted", "2 of 24 runs are not finished and 1 not begun",
        "2 of 24 runs are finished without a score", "left out: 9 of 12 of 'slow'",
    ):  # fmt: skip
        assert expected in text


def test_what_does_not_change_training_may_differ_from_the_plan(tmp_path):
    of = put_study(tmp_path / "s", {"base": 0, "slow": 0})
    config = of.config_of(StudyRun("slow", 0))
    config.num_devices, config.log_every_steps = 1, 7
    put_run(tmp_path / "s" / StudyRun("slow", 0).folder, config, 0.5)
    assert {each.status for each in read(tmp_path / "s").runs} == {"finished"}


def test_too_few_pairs_decide_nothing_and_more_variants_need_more(tmp_path):
    put_study(tmp_path / "five", {"base": 0, "slow": -0.1}, seeds=5)
    assert any("6 pairs can decide" in each for each in words.notes(read(tmp_path / "five")))
    variants = {"base": {}, **{f"v{number}": {"batch_size": number} for number in range(1, 6)}}
    put_study(tmp_path / "six", dict.fromkeys(variants, -0.1) | {"base": 0}, seeds=6, variants=variants)
    found = read(tmp_path / "six")
    assert found.variants["v1"].versus_base is not None
    assert found.variants["v1"].versus_base.verdict == "cannot decide"
    assert any("p = 0.16 with 5 compared" in each and "8 pairs can decide" in each for each in words.notes(found))


def test_one_seed_has_no_interval(tmp_path):
    put_study(tmp_path / "s", {"base": 0, "slow": -0.1}, seeds=1)
    found = read(tmp_path / "s")
    assert any("'base', 'slow' have one score alone: no interval" in each for each in words.notes(found))
    assert words.sentence(found, "base").endswith("(n = 1, no interval).")
    assert "±" not in words.mean_in_words(found, "base")


def test_an_interval_that_holds_zero_says_both_sides(tmp_path):
    put_study(tmp_path / "s", {"base": 0, "slow": 0})
    found = read(tmp_path / "s")
    of = found.variants["slow"].versus_base
    assert of is not None
    assert of.interval is not None
    both = f"(95 % {-100 * of.interval.low:.3f} lower to {100 * of.interval.high:.3f} higher, n = 8"
    assert both in words.sentence(found, "slow")
    assert words.sentence(found, "slow").endswith("Holm): no difference shown.")


def test_folds(tmp_path):
    put_study(tmp_path / "s", {"base": 0, "slow": -0.1}, seeds=1, folds=8, split="validation")
    found = read(tmp_path / "s")
    of = found.variants["slow"].versus_base
    assert of is not None
    assert of.interval is not None
    assert (of.pairs, of.interval.method, of.verdict) == (8, "corrected t", "worse")
    text = " ".join(words.notes(found))
    assert "Folds share training data" in text
    assert "8 paired folds" in words.sentence(found, "slow")
    put_study(tmp_path / "t", {"base": 0, "slow": -0.1}, seeds=3, folds=2)
    assert (read(tmp_path / "t").variants["slow"].summary.n) == 3


def test_runs_without_a_study_are_grouped_by_config(tmp_path):
    for rate in (0.1, 0.01):
        for seed in range(6):
            config = Config(seed=seed)
            config.optimizer.learning_rate = rate
            put_run(tmp_path / f"{rate}-{seed}", config, 0.9 + seed / 100 - (rate == 0.01) * (0.05 + seed / 1000))
    put_run(tmp_path / "again", Config(seed=5), 0.1)
    folders = [tmp_path / f"{rate}-{seed}" for rate in (0.1, 0.01) for seed in range(6)]
    code, _, errors = run_here(*folders, tmp_path / "again", f"--output={tmp_path / 'out'}", module="compare")
    assert (code, errors) == (0, "")
    content = json.loads((tmp_path / "out/study.json").read_text())
    assert list(content["variants"]) == ["optimizer.learning_rate=0.1", "optimizer.learning_rate=0.01"]
    assert content["variants"]["optimizer.learning_rate=0.01"]["versus_base"]["verdict"] == "worse"
    assert content["variants"]["optimizer.learning_rate=0.1"]["n"] == 6  # equal seeds count once
    assert "which counts once" in " ".join(content["notes"])


def test_plain_runs_of_other_data_do_not_count(tmp_path):
    put_run(tmp_path / "a", Config(seed=0), 0.9)
    put_run(tmp_path / "b", Config(seed=1), 0.8, data={**DATA, "fingerprint": "other"})
    found = results.read_runs({name: epath.Path(tmp_path / name) for name in "ab"}, Asked())
    assert [each.status for each in found.runs] == ["finished", "refused"]
    assert found.variants["all"].summary.n == 1


def test_a_base_without_runs_compares_nothing(tmp_path):
    put_study(tmp_path / "s", {"base": 0, "slow": 0}, seeds=2)
    for seed in (0, 1):
        (tmp_path / "s" / StudyRun("base", seed).folder / "summary.json").unlink()
    found = read(tmp_path / "s")
    assert found.variants["slow"].versus_base is None
    assert words.notes(found)[-1] == "Nothing is compared with 'base'."
    assert tables.json_of(found)
    assert tables.markdown_of(found, list(VARIANTS))


def test_losses_of_other_kinds_are_not_comparable(tmp_path):
    variants = {"base": {}, "smooth": {"loss.label_smoothing": 0.1}}
    put_study(tmp_path / "s", {"base": 0, "smooth": 0}, variants=variants, seeds=2)
    assert any("another loss" in each for each in words.notes(read(tmp_path / "s", metric="loss")))
    assert not any("another loss" in each for each in words.notes(read(tmp_path / "s")))


def test_predictions_of_two_variants_are_compared_pair_by_pair(tmp_path):
    put_study(tmp_path / "s", {"base": 0, "slow": 0}, seeds=5)
    labels = list("0123456789")
    for seed, (only_base, only_slow) in enumerate(((3, 0), (1, 1), (0, 2), (9, 0))):
        for variant, wrong in (("base", range(3, 3 + only_slow)), ("slow", range(only_base))):
            said = ["x" if place in wrong else label for place, label in enumerate(labels)]
            name = variant if seed == 3 else "same"  # seed 3's are of other examples
            rows = [[place, f"{name}{place}", labels[place], said[place], 0.5] for place in range(10)]
            with open(tmp_path / "s" / StudyRun(variant, seed).folder / "predictions.csv", "w") as file:
                csv.writer(file).writerows([["index", "identifier", "label", "prediction", "confidence"], *rows])
    code, output, _ = run_here(tmp_path / "s", "--predictions=base", "--predictions=slow", module="compare")
    assert code == 0
    assert "10 examples; 3 of 5 pairs" in output
    assert "other predictions: 20.00 % (20.00 to 30.00)" in output
    assert "right alone: 'base' 1 (0 to 3), 'slow' 1 (0 to 2)" in output
    assert "McNemar's exact p: 0.5 (0.25 to 1)" in output


def test_real_runs_are_the_plans(tmp_path):
    from jaxcnn.train import Order, train

    of = Study(small_config(num_steps=2), {"base": {}, "slow": {"optimizer.learning_rate": 0.01}}, seeds=(0,))
    folder = epath.Path(tmp_path / "s")
    write_plan(folder, of, experiment="test")
    for run in of.runs():
        quiet = PatientConsole(file=io.StringIO())
        train(Order(of.config_of(run), "test", folder / run.folder), start=time.perf_counter(), console=quiet)
    found = read(tmp_path / "s")
    assert [(each.status, each.reason) for each in found.runs] == [("finished", None)] * 2
    assert (found.metric, found.higher_is_better) == ("accuracy", True)


# ---- names, files and commands of strangers


def test_names_are_text_wherever_they_stand(tmp_path):
    names = ["=1+1", "a|b`<i>*x*", "100% $x_1$ {\\} #~^&", "line\nend\x1b[2J"]
    variants = {"base": {}, **{name: {"batch_size": number + 1} for number, name in enumerate(names)}}
    put_study(tmp_path / "s", dict.fromkeys(variants, 0.0), variants=variants, seeds=2)
    found = read(tmp_path / "s")
    cells = [row[0] for row in csv.reader(io.StringIO(tables.csv_of(found, list(variants))))]
    assert cells[2] == "'=1+1"
    assert cells[5] == r"line\nend\x1b[2J"
    page = tables.markdown_of(found, list(variants))
    assert r"| a\|b\`\<i\>\*x\* |" in page
    assert r"- line\\nend\\x1b\[2J: test accuracy" in page
    assert not any(ord(letter) < 32 and letter != "\n" for letter in page)
    rows = tables.latex_of(found, list(variants)).splitlines()
    assert rows[5].startswith("base & 2 & ")
    assert rows[8].startswith(r"100\% \$x\_1\$ \{\textbackslash{}\} \#\textasciitilde{}\textasciicircum{}\& & 2 &")
    assert len(rows) == 12  # a name adds no line


WRONG = {
    "nothing given": ([], "no study given"),
    "no folder": (["{tmp}/none"], "is no folder"),
    "a file": (["{tmp}/file"], "is no folder"),
    "an empty folder": (["{tmp}/empty"], "neither a study"),
    "a loop of links": (["{tmp}/loop"], "is no folder"),
    "unknown split": (["{study}", "--split=tset"], "did you mean 'test'"),
    "unknown metric": (["{study}", "--metric=acuracy"], "did you mean 'accuracy'"),
    "unknown base": (["{study}", "--base=bsae"], "did you mean 'base'"),
    "unknown flag": (["{study}", "--metrics=loss"], "Unknown command line flag"),
    "one variant's predictions": (["{study}", "--predictions=base"], "give it twice"),
    "the same variant's predictions": (["{study}", "--predictions=base", "--predictions=base"], "twice; name two"),
    "predictions of no variant": (["{study}", "--predictions=base", "--predictions=x", "--no_write"], "no variant 'x'"),
    "no predictions": (["{study}", "--predictions=base", "--predictions=slow", "--no_write"], "make them first"),
    "output and none": (["{study}", "--no_write", "--output={tmp}/out"], "leave one of them out"),
    "output below a file": (["{study}", "--output={tmp}/file/out"], "cannot be written"),
    "two studies": (["{study}", "{tmp}/empty"], "is compared alone"),
    "a folder twice": (["{study}", "{study}/."], "given twice"),
    "no JSON": (["{tmp}/broken"], "cannot be read"),
    "a plan of another kind": (["{tmp}/strange"], "has no field 'x'"),
    "a plan that is a device": (["{tmp}/device"], "cannot be read"),
    "nothing finished": (["{tmp}/begun"], "none of the 2 runs of begun that count has finished"),
    "a damaged run": (["{tmp}/damaged"], "is {tmp}/damaged a run's folder?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_commands_are_a_line(case, whole, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("empty", "broken", "strange", "device", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/plan.json").write_text("{")
    plan = json.loads((whole / "plan.json").read_text())
    (tmp_path / "strange/plan.json").write_text(json.dumps({**plan, "variants": {"base": {}, "v": {"x": 1}}}))
    (tmp_path / "device/plan.json").symlink_to("/dev/zero")
    (tmp_path / "damaged/config.json").write_text("[]")
    write_plan(epath.Path(tmp_path / "begun"), Study(Config(), VARIANTS, (0,)), experiment="digits")
    arguments, said = WRONG[case]
    fill = lambda text: text.replace("{tmp}", str(tmp_path)).replace("{study}", str(whole))
    code, _, errors = run_here(*map(fill, arguments), module="compare")
    assert code == 2, errors
    assert len(errors.splitlines()) == 1
    assert fill(said) in errors


def test_a_metric_of_no_direction_is_refused(monkeypatch):
    from jaxcnn.tasks.forecasting.metrics import metrics_for

    saved = {"config": to_dict(Config(task="forecasting")), "best": {"best_metric": "mae", "higher_is_better": False}}
    assert results._higher_is_better("mae", saved) is False
    of_classes = {"config": to_dict(Config()), "data": DATA, "best": {"best_metric": "loss", "higher_is_better": False}}
    assert results._higher_is_better("macro_f1", of_classes) is True
    with pytest.raises(UserError, match="'num_examples' is not better in one direction"):
        results._higher_is_better("num_examples", of_classes)
    monkeypatch.setattr(results, "_metrics_of", lambda saved: metrics_for((0.1, 0.5, 0.9)))
    assert results._higher_is_better("smape", saved) is False
    with pytest.raises(UserError, match="'coverage' is not better in one direction"):
        results._higher_is_better("coverage", saved)


def test_links_in_a_study_lead_to_no_other_seeds_scores(tmp_path):
    put_study(tmp_path / "s", {"base": 0, "slow": 0}, seeds=2)
    place = tmp_path / "s" / StudyRun("slow", 1).folder
    os.rename(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "s" / StudyRun("slow", 0).folder)
    found = {(each.run.variant, each.run.seed): each.status for each in read(tmp_path / "s").runs}
    assert found["slow", 1] == "refused"
    (tmp_path / "target").write_text("mine")
    (tmp_path / "s/study.json").symlink_to(tmp_path / "target")
    assert run_here(tmp_path / "s", module="compare")[0] == 0
    assert (tmp_path / "target").read_text() == "mine"
