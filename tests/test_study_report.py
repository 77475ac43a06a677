"""The report of a study and of a search: its numbers are the study's, names are text, many runs stay a small page."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from jaxcnn.errors import UserError
from jaxcnn.report import figures, study_figures
from jaxcnn.report.from_study import MOST_ROWS
from jaxcnn.report.study_board import _column
from jaxcnn.report.study_figures import scale_of
from jaxcnn.report.study_files import Curve, band_of, study_of
from tests.browser import Browser
from tests.studies import grid, make_search, make_study
from tests.test_report import SCRIPT, checked, report

GRID = grid(optimizer__learning_rate=[0.1, 0.01, 0.001], model__dropout_rate=[0.0, 0.5])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(study.json, the page's text, the folder) of a grid with a failed run and a hostile name."""
    folder = tmp_path_factory.mktemp("study") / "grid"
    variants = GRID | {SCRIPT: {"optimizer.learning_rate": 0.5, "model.dropout_rate": 0.0}}
    lost = ("learning_rate=0.01 dropout_rate=0.0", 2)
    result = make_study(folder, variants, failed=(lost,), notes=("Six pairs are few: <b>so</b>.",))
    assert report("--workdir", folder)[0] == 0
    return result, (folder / "report.html").read_text(), folder


def cells(text, caption):
    """The words of a table's rows."""
    (body,) = re.findall(rf"<caption>{caption}.*?<tbody>(.*?)</tbody>", text, re.DOTALL)
    rows = [re.findall(r"<bdi>(.*?)</bdi>", row, re.DOTALL) for row in body.split("<tr>")[1:]]
    return [[html.unescape(word) for word in row] for row in rows]


def test_the_page_is_whole_and_its_numbers_are_the_studys(made):
    result, text, folder = made
    checker = checked(text)
    assert re.findall(r'<h2 id="[^"]*">([^<]*)', text) == [
        "Results", "Differences", "What the fields do", "Training", "Not finished", "How it was run",
    ]  # fmt: skip
    assert "Could not be made" not in text
    rows = cells(text, "accuracy on test")
    assert [row[0] for row in rows] == list(result["variants"])
    for row, variant in zip(rows, result["variants"].values(), strict=True):
        assert row[1] == str(variant["n"])
        assert row[2] == f"{100 * variant['mean']:.2f} %"
        versus = variant["versus_base"]
        assert row[4] == ("—" if versus is None else f"{100 * versus['difference']:+.2f}")
        assert row[8] == ("base" if versus is None else versus["verdict"])
    assert "loss is not finite at step 12" in text
    assert "python -m jaxcnn.sweep --config experiments/digits.py" in text
    assert {path.name for path in (folder / "report").iterdir()} == {
        "differences.png", "scores.png", "interaction.png", "optimizer.learning_rate.png", "accuracy.png", "loss.png",
    }  # fmt: skip
    for tag, attributes in checker.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
        assert tag != "svg" or attributes["aria-label"]
    assert len(checker.ids) == len(set(checker.ids))


def test_names_and_notes_are_text(made):
    _, text, _ = made
    assert SCRIPT not in text
    assert SCRIPT in {data for tag, data in checked(text).texts if tag == "bdi"}
    assert "Six pairs are few: &lt;b&gt;so&lt;/b&gt;." in text


def test_both_intervals_of_a_difference_are_shown(tmp_path):
    """Also where they differ, or one is not there."""
    result = make_study(tmp_path, {"base": {}, "a": {"batch_size": 8}, "b": {"batch_size": 16}}, epochs=1)
    of_a, of_b = (result["variants"][name]["versus_base"] for name in "ab")
    of_a |= {"interval": [-0.0012, 0.0234], "bca": [0.0003, 0.0217]}
    of_b |= {"interval": [-0.05, -0.01], "bca": None}
    (tmp_path / "study.json").write_text(json.dumps(result))
    assert report("--workdir", tmp_path)[0] == 0
    rows = cells((tmp_path / "report.html").read_text(), "accuracy on test")
    assert [row[5:7] for row in rows] == [
        ["—", "—"], ["+0.03 to +2.17", "-0.12 to +2.34"], ["—", "-5.00 to -1.00"],
    ]  # fmt: skip


def test_runs_evaluated_once_have_no_curves(tmp_path):
    """A dot a run in a row of its variant, in a curve's place."""
    make_study(tmp_path, GRID, epochs=1)
    assert report("--workdir", tmp_path)[0] == 0
    text = (tmp_path / "report.html").read_text()
    assert "Could not be made" not in text
    assert text.count("so there are no curves") >= 2  # accuracy and loss
    assert "over the epochs" not in text
    assert {"accuracy.png", "loss.png"} <= {path.name for path in (tmp_path / "report").iterdir()}


def test_many_variants_are_a_small_page(tmp_path):
    variants: dict[str, dict[str, Any]] = {"base": {}} | {
        f"variant {n}": {"batch_size": n} for n in range(1, MOST_ROWS + 20)
    }
    make_study(tmp_path / "study", variants, seeds=1, epochs=3)
    assert report("--workdir", tmp_path / "study")[0] == 0
    text = (tmp_path / "study" / "report.html").read_text()
    assert len(cells(text, "accuracy on test")) == len(variants)
    assert f"Of {len(variants)} variants the best {MOST_ROWS}" in text
    assert f"grey {len(variants) - 8} others" in text
    assert "bands" not in text  # of one seed there are none
    assert len(text) < 1e6


def test_the_band_is_students(tmp_path):
    from scipy import stats

    values = np.random.default_rng(0).normal(size=(4, 3))
    curves = [Curve([1.0, 2.0, 3.0], {"loss": row.tolist()}) for row in values]
    curves.append(Curve([1.0, 2.0], {"loss": [0.5, float("nan")]}))  # which stopped, and was not finite before
    band = band_of(curves, "loss")
    assert band.epochs.tolist() == [1.0]
    points = [*values[:, 0], 0.5]
    low, high = stats.t.interval(0.95, 4, np.mean(points), stats.sem(points))
    assert (band.mean[0], band.low[0], band.high[0]) == pytest.approx((np.mean(points), low, high))
    assert np.isnan(band_of(curves[:1], "loss").low).all()
    assert len(band_of([], "loss").epochs) == 0


def test_only_a_grid_has_interactions_and_a_field_alone_a_line(tmp_path):
    cross: dict[str, dict[str, Any]] = {
        "base": {},
        "a": {"batch_size": 8},
        "b": {"batch_size": 16},
        "c": {"model.dropout_rate": 0.5},
    }
    make_study(tmp_path / "cross", cross, seeds=2, epochs=2)
    assert report("--workdir", tmp_path / "cross")[0] == 0
    pictures = {path.name for path in (tmp_path / "cross" / "report").iterdir()}
    assert "batch_size.png" in pictures
    assert not {"interaction.png", "model.dropout_rate.png"} & pictures


def test_a_field_that_spans_much_has_a_logarithmic_axis():
    rows = [study_figures.Estimate("", value) for value in (1.0, 2.0, 3.0)]
    draw = lambda xs: study_figures.response(xs, rows, x_label="", y_label="").axes[0].get_xscale()
    assert draw([0.001, 0.01, 0.1]) == "log"
    assert draw([1, 2, 3]) == draw([0.0, 0.01, 1]) == "linear"


def test_a_long_name_keeps_both_ends():
    assert study_figures.middle_out("a" * 30 + "b" * 30, 10) == "aaaa…bbbbb"
    assert figures.short("a" * 30, 10) == "a" * 9 + "…"


# ---- a search


def test_a_search(tmp_path):
    result = make_search(tmp_path / "search")
    assert report("--workdir", tmp_path / "search")[0] == 0
    text = (tmp_path / "search" / "report.html").read_text()
    checked(text)
    assert re.findall(r'<h2 id="[^"]*">([^<]*)', text) == ["Search", "Best trials"]
    best = sorted((t for t in result["trials"] if t["value"] is not None), key=lambda t: -t["value"])
    (table,) = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    rows = [re.findall(r"<bdi>(.*?)</bdi>", row) for row in table.split("<tr>")[1:]]
    assert [row[:2] for row in rows] == [[str(t["trial"]), f"{100 * t['value']:.2f} %"] for t in best[:10]]
    assert "the best tenth (3 of 32)" in text
    assert {path.name for path in (tmp_path / "search" / "report").iterdir()} == {
        "trials.png", "importances.png", "parameters.png",
    }  # fmt: skip


def test_a_search_of_nothing_yet_and_of_one_trial(tmp_path):
    make_search(tmp_path, trials=5)
    told = json.loads((tmp_path / "search_result.json").read_text())
    for trials, words in (([], "No trial has finished yet"), (told["trials"][-1:], "No importances")):
        (tmp_path / "search_result.json").write_text(json.dumps(told | {"trials": trials, "importances": None}))
        assert report("--workdir", tmp_path)[0] == 0
        assert words in (tmp_path / "report.html").read_text()


def test_scales_of_parallel_coordinates():
    assert scale_of("rate", [0.001, 0.01, 0.1]).places == pytest.approx([0, 0.5, 1])
    assert scale_of("width", [1, 2, None, 5]).places == pytest.approx([0, 0.25, np.nan, 1], nan_ok=True)
    assert scale_of("name", ["b", "a", "c"]).words == [(0, "a"), (0.5, "b"), (1, "c")]
    assert scale_of("flip", [True, False]).places == pytest.approx([1, 0])
    assert scale_of("same", [2, 2]).places == pytest.approx([0.5, 0.5])


# ---- what is wrong


def test_nothing_is_removed_through_a_link(made, tmp_path):
    _, _, folder = made
    for name in ("plan.json", "study.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    run = next(iter(json.loads((folder / "study.json").read_text())["variants"].values()))["runs"][0]
    theirs = tmp_path / "theirs" / Path(run["folder"]).name
    theirs.mkdir(parents=True)
    link = tmp_path / "tensorboard" / Path(run["folder"]).parent
    link.parent.mkdir(parents=True)
    link.symlink_to(theirs.parent)
    with pytest.raises(UserError, match="is a link"):
        report("--workdir", tmp_path)
    assert theirs.exists()


def test_wrong_commands_and_folders_are_one_line(made, tmp_path):
    _, _, folder = made
    told = json.loads((folder / "study.json").read_text())
    outside = json.loads(json.dumps(told))
    next(iter(outside["variants"].values()))["runs"][0]["folder"] = "../../etc"
    for content, words in (
        (told | {"base": "none"}, "the base 'none' is none of its variants"),
        (told | {"variants": 3}, "cannot be read"),
        (outside, "is none of the study's"),
    ):
        (tmp_path / "plan.json").write_text((folder / "plan.json").read_text())
        (tmp_path / "study.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            study_of(epath.Path(tmp_path))
    (tmp_path / "study.json").unlink()
    for arguments, words in (
        (["--workdir", tmp_path], "that count has finished; run them to their ends first"),
        (["--workdir", folder, folder / "runs"], "a page of its own; pass it alone"),
        (["--workdir", folder, "--step=last"], "--step is of a run's network"),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            report(*arguments)
        assert "\n" not in str(error.value)


def test_in_a_real_browser(made, tmp_path):
    """On a phone nothing is wider than the screen, nothing is wrong in the console, and tables sort."""
    tab = Browser(tmp_path)
    try:
        for dark in (False, True):
            tab.look(390, 844, dark=dark)
            tab.open(f"file://{made[2]}/report.html")
            assert tab.value("document.documentElement.scrollWidth") <= 390
            assert tab.value("document.querySelectorAll('svg[aria-label]').length") == 6
        tab.value("document.querySelectorAll('th button')[2].click()")
        means = tab.value("[...document.querySelector('tbody').rows].map(row => Number(row.cells[2].dataset.value))")
        assert means == sorted(means, reverse=True)
        assert tab.value("document.title") == "grid: report"
        assert tab.faults() == []
    finally:
        tab.close()


# ---- TensorBoard's table


def test_tensorboard_shows_the_study_as_a_table(made):
    """Asked of its own backend: the varied fields alone are columns, a variant is a row with its runs' mean."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    result, _, folder = made
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder / "tensorboard"))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, "")
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    asked = RequestContext()
    experiment = get_experiment.Handler(
        asked, context, "", api_pb2.GetExperimentRequest(hparams_limit=0, include_metrics=True)
    ).run()
    assert {each.name for each in experiment.hparam_infos} == {"optimizer.learning_rate", "model.dropout_rate"}
    assert [each.name.tag for each in experiment.metric_infos] == ["accuracy"]
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100, aggregation_type=api_pb2.AGGREGATION_AVG, include_metrics=True,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        col_params=[
            api_pb2.ColParams(metric=experiment.metric_infos[0].name, include_in_result=True),
            *(api_pb2.ColParams(hparam=each.name, include_in_result=True) for each in experiment.hparam_infos),
        ],
    )  # fmt: skip
    groups = list_session_groups.Handler(asked, context, "", request).run().session_groups
    assert len(groups) == len(result["variants"])
    assert sum(len(group.sessions) for group in groups) == 6 * len(groups) - 1
    shown = {
        (group.hparams["optimizer.learning_rate"].number_value, group.hparams["model.dropout_rate"].number_value): (
            group.metric_values[0].value
        )
        for group in groups
    }
    for variant in result["variants"].values():
        key = variant["overrides"]["optimizer.learning_rate"], variant["overrides"]["model.dropout_rate"]
        assert shown[key] == pytest.approx(variant["mean"], rel=1e-6)


def test_the_table_is_written_anew(tmp_path):
    """And nothing else there is touched."""
    make_study(tmp_path / "study", {"base": {}, "b": {"batch_size": 8}}, seeds=1, epochs=1)
    mine = tmp_path / "study" / "tensorboard" / "train" / "events"
    mine.parent.mkdir(parents=True)
    mine.write_text("a run's own")
    for _ in range(2):
        assert report("--workdir", tmp_path / "study")[0] == 0
        files = [path for path in (tmp_path / "study" / "tensorboard").rglob("*") if path.is_file()]
        assert len(files) == 3
        assert mine in files


def test_a_column_is_of_one_kind():
    assert _column([1, 2.5]) == [1, 2.5]
    assert _column([None, 2.5]) == ["null", "2.5"]
    assert _column([True, False]) == [True, False]
    assert _column([True, 2]) == ["true", "2"]
