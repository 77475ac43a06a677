"""Time series: what is refused and in which words, windows that look not ahead, models, and the commands on runs."""

import io
import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jaxcnn.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ForecastConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    from_dict,
    to_dict,
)
from jaxcnn.errors import UserError
from jaxcnn.layers.recurrent import Recurrent
from jaxcnn.models import FORECASTERS
from jaxcnn.models.linear import moving_mean
from jaxcnn.models.tcn import TCN, CausalConv
from jaxcnn.results import general
from jaxcnn.tasks.forecasting import FORECASTING
from jaxcnn.tasks.forecasting.clock import Clock, clock_of, read_stamps
from jaxcnn.tasks.forecasting.metrics import metrics_for, pinball_errors
from jaxcnn.tasks.forecasting.series import Series, make_seasonal
from jaxcnn.tasks.forecasting.source import open_source
from jaxcnn.tasks.forecasting.windows import BASELINES, Shape, Windows
from jaxcnn.tasks.metric import Metrics
from jaxcnn.terminal import PatientConsole
from jaxcnn.training.build import build
from jaxcnn.training.preview import preview
from tests.runs import arrays, assert_same_arrays, changed, rows, train


def series_config(name: str = "make_seasonal", **changes: Any) -> Config:
    """A linear map, 12 steps of 16 windows; a key `a__b` sets config.a.b."""
    config = Config(
        task="forecasting", num_steps=12, batch_size=16, eval_every_epochs=0.02, log_every_steps=4,
        data=DataConfig(name=name), forecast=ForecastConfig(length=24, horizon=6),
        model=ModelConfig(name="linear"), loss=LossConfig(name="pinball"),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
        checkpoint=CheckpointConfig(every_steps=4, keep_last=8), tensorboard=False, compilation_cache=False,
    )  # fmt: skip
    return changed(config, changes)


def csv_of(folder: Path, lines: Sequence[str], name: str = "series.csv") -> str:
    (folder / name).write_text("\n".join(lines) + "\n")
    return f"csv:{folder / name}"


def months(count: int, first: int = 0) -> list[str]:
    return [f"{2000 + month // 12}-{month % 12 + 1:02}" for month in range(first, first + count)]


def sales(folder: Path, count: int = 90) -> str:
    """Two monthly series with a season, one of them empty at first."""
    lines = ["month,sales,costs"]
    for number, month in enumerate(months(count)):
        season = np.sin(2 * np.pi * number / 12)
        lines.append(f"{month},{100 + number + 10 * season:.3f},{50 - 5 * season:.3f}")
    return csv_of(folder, lines, "sales.csv")


# ---- what is refused


DAYS = ["day,y", *(f"2024-01-{day:02},{day}" for day in range(1, 29))]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([""], {}, "is empty; a table begins with a line that names its columns"),
        (["day,y"], {}, "has a header and no rows"),
        (["day,y", "2024-01-01,1", "2024-01-02"], {}, "line 3, has 1 cells, and the header 2"),
        (["day", "2024-01-01"], {}, "has no column beside the stamps 'day'"),
        ([*DAYS, "2024-01-28,5"], {}, "line 30: the stamp 2024-01-28 stands there a second time"),
        ([*DAYS, "2024-01-05,5"], {}, "line 30: the stamp 2024-01-05 stands there a second time"),
        ([*DAYS[:4], *DAYS[5:], DAYS[4]], {}, "line 29: the stamp 2024-01-04 comes after 2024-01-28; sort the rows"),
        ([*DAYS[:9], *DAYS[11:]], {}, "line 10: 2 stamps are missing, the first between 2024-01-08 and 2024-01-11; set "
         "forecast.missing=previous"),
        (["t,y", "2024-01-01 00:00,1", "2024-01-01 01:00,1", "2024-01-01 01:20,1", "2024-01-01 02:20,1"], {},
         "line 4: the stamps are irregular: between 2024-01-01 01:00 and 2024-01-01 01:20 lie 20 minutes, and the step "
         "is 1 hour"),
        ([*DAYS, "29.1.2024,5"], {}, "line 30, column 'day': '29.1.2024' is no stamp as the first one"),
        (["day,y", "1.1.2024,5"], {}, "line 2, column 'day': '1.1.2024' is no stamp that is known: 2024-01-31"),
        (["t,y", "1,5", "x,6"], {}, "line 3, column 't': 'x' is no stamp as the first one (a whole number)"),
        (["t,y", "1,5"], {}, "no series has two stamps"),
        ([*DAYS[:5], "2024-01-05,", *DAYS[6:]], {}, "line 6: 1 values of series 'y' are missing; set forecast.missing"),
        ([*DAYS[:5], "2024-01-05,NaN", *DAYS[6:]], {}, "line 6: 1 values of series 'y' are missing"),
        ([*DAYS[:5], "2024-01-05,much", *DAYS[6:]], {}, "line 6, column 'y': 'much' is no number"),
        ([*DAYS[:5], "2024-01-05,inf", *DAYS[6:]], {}, "line 6, column 'y': 'inf' is not finite"),
        (["day,y,z", *(f"{line},NaN" for line in DAYS[1:])], {"missing": "previous"}, "series 'z' has no value at all"),
        (DAYS, {"time": "when"}, "forecast.time='when': {name} has no such column"),
        (DAYS, {"values": ("x",)}, "forecast.values='x': {name} has no such column"),
        (DAYS, {"values": ("day",)}, "must name different columns"),
        (["id,t,y,z", "a,1,2,3"], {"time": "t", "series": "id"}, "one column has their values; there are 2"),
        (DAYS, {}, "1 of 1 series are shorter than a window of 24 + 6 steps: 'y' (28); set forecast.least"),
        (DAYS, {"length": 8}, "train has no window: the longest series has 28 steps"),
        (["t,y", *(f"{n},{n}" for n in range(60))], {"calendar": True}, "calendar=true is for stamps that are"),
    ],
)  # fmt: skip
def test_bad_series_are_one_line(tmp_path, lines, options, message):
    name = csv_of(tmp_path, lines)
    if options.get("length") == 8:
        options["origins"] = 2
    config = Config(task="forecasting", data=DataConfig(name=name), forecast=ForecastConfig(length=24, horizon=6))
    for option, value in options.items():
        setattr(config.forecast, option, value)
    with pytest.raises(UserError) as error:
        open_source(config)
    assert message.format(name=name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "seasonal"}, "are no known series: did you mean 'make_seasonal'?"),
        ({"data__name": "sales.csv"}, "did you mean csv:sales.csv?"),
        ({"data__name": "csv:nowhere.csv"}, "there is no 'nowhere.csv'"),
        (
            {"loss__name": "cross_entropy"},
            "loss.name=cross_entropy is for classes and pixels, and series are of numbers; set loss.name",
        ),
        ({"loss__quantiles": (0.9, 0.5)}, "must increase, with 0.5, the forecast, among them"),
        ({"loss__quantiles": (0.1, 0.9)}, "must increase, with 0.5, the forecast, among them"),
        ({"loss__class_weights": "balanced"}, "loss.class_weights=balanced is read by task="),
        (
            {"loss__name": "mae", "loss__quantiles": (0.2, 0.5)},
            "loss.quantiles=(0.2, 0.5) is read by loss.name=pinball",
        ),
        ({"forecast__recursive": True}, "forecast.recursive=true is for model.name=forecast_rnn, forecast_lstm"),
        (
            {"data__exclude": "list"},
            "data.exclude=list is read by task=classification, multilabel, tabular, text, segmentation only",
        ),
        ({"data__sampling": "balanced"}, "data.sampling=balanced is read by task=classification"),
        ({"table__encode": True}, "table.encode=True is read by task=tabular only"),
        (
            {"model__name": "resnet20"},
            "model.name=resnet20 is not for task=forecasting; choose one of: linear, forecast_rnn",
        ),
        ({"model__name": "forecast_gru", "model__hidden": (4, 8)}, "layers of a recurrent forecaster are alike"),
        ({"checkpoint__best_metric": "accuracy"}, "is not measured with 6 steps"),
        ({"checkpoint__best_metric": "naive_mae"}, "says of no weights that they are better"),
    ],
)
def test_what_does_not_suit_series_is_one_line(changes, message):
    with pytest.raises(UserError) as error:
        build(series_config(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_forecaster_is_for_series():
    with pytest.raises(UserError, match=r"model.name=tcn is for task=forecasting; choose another"):
        build(Config(model=ModelConfig(name="tcn"), compilation_cache=False))


# ---- time


@pytest.mark.parametrize(
    ("cells", "unit", "step", "season", "following"),
    [
        (["2023-11", "2023-12", "2024-01"], "month", 1, 12, "2024-02"),
        (["2023-07-01", "2023-10-01", "2024-01-01"], "month", 3, 4, "2024-04-01"),
        (["2023-11-30", "2023-12-31", "2024-01-31"], "month", 1, 12, "2024-02-29"),  # the last day of each
        (["2019-02-28", "2020-02-28", "2021-02-28"], "month", 12, 1, "2022-02-28"),
        (["2024-02-27", "2024-02-28", "2024-02-29"], "second", 86_400, 7, "2024-03-01"),
        (["2024-01-01", "2024-01-08", "2024-01-15"], "second", 7 * 86_400, 52, "2024-01-22"),
        (["2023-12-31 22:00", "2023-12-31 23:00"], "second", 3600, 24, "2024-01-01 00:00"),
        (["2024-01-01T00:00:00Z", "2024-01-01T00:15:00Z"], "second", 900, 96, "2024-01-01T00:30:00Z"),
        (["1949", "1950", "1951"], "number", 1, 1, "1952"),
        (["0", "10", "20.0"], "number", 10, 1, "30"),
    ],
)
def test_clocks(cells, unit, step, season, following):
    stamps, form = read_stamps(cells)
    clock = clock_of([stamps], form)
    assert (clock.unit, clock.step, clock.season) == (unit, step, season)
    counts = clock.counts(stamps)
    assert [clock.stamp(int(count)) for count in counts] == [cell.removesuffix(".0") for cell in cells]
    assert clock.stamp(int(counts[-1]) + step) == following
    assert clock.count(following) == counts[-1] + step
    assert Clock.of(clock.to_plain()) == clock


def test_time_that_cannot_be_written_and_series_that_cannot_be_held_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="in no year that can be written"):
        Clock("second", 86_400, "%Y-%m-%d").stamp(10**12)
    monkeypatch.setattr("jaxcnn.tasks.forecasting.series.MOST_POINTS", 100)
    with pytest.raises(UserError, match="its series span more than 100 steps in all"):
        open_source(series_config(sales(tmp_path)))
    monkeypatch.setattr("jaxcnn.tasks.forecasting.series.MOST_POINTS", 60)
    with pytest.raises(UserError, match="the stamps span 90 steps, more than 60"):
        open_source(series_config(sales(tmp_path)))


def test_the_calendar_is_of_the_stamp():
    stamps, form = read_stamps(["2024-01-01 00:00", "2024-01-01 06:00", "2024-01-03 12:00"])  # 2024 began on a Monday
    found = Clock("second", 3600, form).calendar(stamps)
    day, week = 2 * np.pi * np.array([0, 0.25, 0.5]), 2 * np.pi * np.array([0, 0, 2 / 7])
    expected = [np.sin(day), np.cos(day), np.sin(week), np.cos(week)]
    np.testing.assert_allclose(found[:, :4], np.stack(expected, axis=1), atol=1e-6)
    assert Clock("second", 86_400, "%Y-%m-%d").num_features == 4  # no time of the day
    assert Clock("month", 1, "%Y-%m").num_features == 2
    np.testing.assert_allclose(Clock("month", 1, "%Y-%m").calendar(np.array([2000 * 12 + 3])), [[1, 0]], atol=1e-6)


def test_missing_values_are_filled_with_the_one_before_and_are_no_targets(tmp_path):
    lines = [line if place % 7 else line.partition(",")[0] + ",NA" for place, line in enumerate(DAYS)]
    lines = ["day,y", "2023-12-30,", *lines[2:10], *lines[12:]]  # two stamps and some values lack, the first too
    told: list[str] = []
    options = dict(missing="previous", length=5, horizon=2, origins=2)
    config = series_config(csv_of(tmp_path, lines), **{f"forecast__{name}": value for name, value in options.items()})
    source = open_source(config, progress=lambda *what: told.append(what[0]))
    (series,) = source.series.series
    assert source.series.clock.stamp(series.start) == "2024-01-02"
    assert len(series) == 26 - 0  # to 2024-01-27; the 28th is missing, and is no end
    assert np.flatnonzero(~series.observed).tolist() == [5, 8, 9, 12, 19]
    assert series.values[[4, 5, 6]].tolist() == [6, 6, 8]
    assert any("5 missing values are filled with the last one before" in line for line in told)
    records: Any = source.splits["train"].records
    batch = records.arrays(np.arange(len(records)))
    origins = records.places[:, 1]
    for place, origin in enumerate(origins):
        np.testing.assert_array_equal(batch["observed"][place], series.observed[origin : origin + 2])
        np.testing.assert_array_equal(batch["inputs"][place, :5, 1], series.observed[origin - 5 : origin])


def test_a_long_table_has_series_of_different_lengths_and_clocks_agree(tmp_path):
    lines = [
        "id,t,y",
        *(
            f"{name},{step},{step + 100 * (name == 'b')}"
            for step in range(40)
            for name in "ab"
            if step > 7 or name == "b"
        ),
    ]
    config = series_config(csv_of(tmp_path, lines), forecast__series="id", forecast__time="t", forecast__origins=1)
    with pytest.raises(UserError, match=r"train has no window|shorter"):
        open_source(series_config(config.data.name, forecast__series="id", forecast__time="t", forecast__length=40))
    config.forecast.length, config.forecast.horizon = 8, 4
    source = open_source(config)
    assert {each.name: (len(each), each.start) for each in source.series.series} == {"b": (40, 0), "a": (32, 8)}
    assert source.words() == "2 series, 8 steps to forecast 4"
    assert [len(source.splits[name]) for name in ("train", "validation", "test")] == [21 + 13, 2, 2]


# ---- windows


def windows_of(values: Any, origins: Sequence[int], observed: Any = None, **changes: Any) -> Windows:
    options = {"length": 4, "horizon": 3, "season": 2, "centre": "none", "scale": "none", "calendar": False}
    shape = Shape(clock=Clock("month", 1, "%Y-%m"), **{**options, **changes})
    seen = np.ones(len(values), bool) if observed is None else np.array(observed, bool)
    return Windows(
        "y", [Series("y", 24_000, np.array(values, float), seen)], shape, np.array([(0, t) for t in origins])
    )


def test_a_window_by_hand():
    values = [1, 3, 2, 5, 4, 8, 7, 9, 6]
    made = windows_of(values, [5, 2]).arrays(np.array([0, 1]))
    assert made["inputs"][0].tolist() == [[3, 1], [2, 1], [5, 1], [4, 1], [0, 0], [0, 0], [0, 0]]
    assert made["inputs"][1].tolist()[:4] == [[0, 0], [0, 0], [1, 1], [3, 1]]  # padded
    assert made["value"].tolist() == [[8, 7, 9], [2, 5, 4]]
    assert made["observed"].tolist() == [[1, 1, 1], [1, 1, 1]]
    naive, seasonal, drift = made["baselines"][0]
    assert (naive.tolist(), seasonal.tolist()) == ([4, 4, 4], [5, 4, 5])
    np.testing.assert_allclose(drift, [4 + 0.75 * step for step in (1, 2, 3)])
    # |2 - 1|, |5 - 3|, |4 - 2| up to the origin
    np.testing.assert_allclose(made["error_scale"], [5 / 3, 0])
    assert windows_of(values, [5]).identifier(0) == "y@2000-05"


@pytest.mark.parametrize(
    ("centre", "scale", "shift", "size"),
    [
        ("none", "none", 0, 1),
        ("mean", "std", 3.5, np.std([3, 2, 5, 4])),
        ("last", "mean_absolute", 4, 3.5),
        ("none", "mean_absolute", 0, 3.5),
    ],
)
def test_a_window_is_scaled_by_its_own_past(centre, scale, shift, size):
    made = windows_of([1, 3, 2, 5, 4, 8, 7, 9], [5], centre=centre, scale=scale).arrays(np.array([0]))
    np.testing.assert_allclose([made["shift"][0], made["scale"][0]], [shift, size], rtol=1e-6)
    np.testing.assert_allclose(made["inputs"][0, :4, 0] * size + shift, [3, 2, 5, 4], rtol=1e-6)
    np.testing.assert_allclose(made["value"][0] * size + shift, [8, 7, 9], rtol=1e-6)
    np.testing.assert_allclose(made["baselines"][0, 0] * size + shift, [4, 4, 4], rtol=1e-6)


def test_constant_and_large_series_stay_finite():
    for values, size in (([5.0] * 8, 5), ([0.0] * 8, 1), ([1e8 + n for n in range(8)], np.std(range(4)))):
        made = windows_of(values, [5], centre="mean", scale="std").arrays(np.array([0]))
        assert all(np.isfinite(each).all() for each in made.values())
        np.testing.assert_allclose(made["scale"], size, rtol=1e-3)
    np.testing.assert_allclose(made["value"][0], (np.array([5, 6, 7]) - 2.5) / np.std(range(4)), rtol=1e-5)


@pytest.mark.parametrize("centre", ["none", "mean", "last"])
@pytest.mark.parametrize("scale", ["none", "mean_absolute", "std"])
def test_nothing_of_the_future_is_seen(centre, scale):
    """Another future: the same inputs, scales, baselines; another truth, and nothing else."""
    rng = np.random.default_rng(0)
    values, observed = rng.normal(10, 3, 60), rng.random(60) > 0.1
    origins = range(3, 54)
    options = dict(centre=centre, scale=scale, calendar=True, length=8, season=5)
    before = windows_of(values, origins, observed, **options)
    for place, origin in enumerate(origins):
        changed, seen = values.copy(), observed.copy()
        changed[origin:], seen[origin:] = rng.normal(1000, 50, 60 - origin), ~observed[origin:]
        after = windows_of(changed, origins, seen, **options)
        one, other = (each.arrays(np.array([place])) for each in (before, after))
        assert set(one) == {"inputs", "value", "observed", "baselines", "shift", "scale", "error_scale"}
        for name in set(one) - {"value", "observed"}:
            np.testing.assert_array_equal(one[name], other[name])
        assert not np.array_equal(one["value"], other["value"])
        assert not one["inputs"][0, 8:, :2].any()  # of the horizon, the calendar alone


def targets_of(source: Any, split: str) -> dict[int, set[int]]:
    """By series, the steps that a split's windows forecast."""
    records = source.splits[split].records
    found: dict[int, set[int]] = {}
    for series, origin in records.places[source.splits[split].indices]:
        found.setdefault(int(series), set()).update(range(origin, origin + records.shape.horizon))
    return found


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (150, 150)),
        ({"forecast__origins": 3}, (18, 18)),
        ({"forecast__origins": 5, "forecast__stride": 1}, (10, 10)),
        ({"data__validation_fraction": 0.02}, (30, 150)),
        ({"data__fold": "1/4"}, (270, 150)),
        ({"data__fold": "4/4"}, (270, 150)),
    ],
)
def test_splits_follow_one_another_in_time(changes, sizes):
    source = open_source(series_config(**changes))
    parts = [targets_of(source, split) for split in ("train", "validation", "test")]
    for series in range(3):
        train, validation, test = (part[series] for part in parts)
        assert max(train) < min(validation) <= max(validation) < min(test)
        assert (len(validation), len(test)) == sizes
        assert max(test) == 1499
        assert min(train) == 24
    kept = open_source(series_config(**changes), kept=source.record_numbers)
    assert kept.splits_digest == source.splits_digest


def test_folds_roll_on():
    ends = []
    for fold in range(1, 5):
        source = open_source(series_config(data__fold=f"{fold}/4"))
        ends.append((max(targets_of(source, "train")[0]), max(targets_of(source, "validation")[0])))
    assert [train < validation for train, validation in ends] == [True] * 4
    assert [later[0] > earlier[0] for earlier, later in pairwise(ends)] == [True] * 3
    assert [end for _, end in ends] == [539, 809, 1079, 1349]


def test_other_values_are_other_data(tmp_path):
    name = sales(tmp_path)
    source = open_source(series_config(name))
    file = Path(name.removeprefix("csv:"))
    file.write_text(file.read_text().replace("2000-03,", "2000-03,1", 1))
    with pytest.raises(UserError, match="the data are not those"):
        open_source(series_config(name), kept=source.record_numbers)


# ---- numbers


def measured(quantiles: tuple[float, ...], outputs: Any, **targets: Any) -> dict[str, float]:
    own = Metrics(metrics_for(quantiles))
    batch = {
        "observed": np.ones((1, 2)), "shift": np.zeros(1), "scale": np.ones(1), "error_scale": np.ones(1),
        "baselines": np.zeros((1, 3, 2)), **targets,
    }  # fmt: skip
    batch = {name: jnp.asarray(each, jnp.float32) for name, each in batch.items()}
    values = own.of_examples(jnp.asarray(outputs, jnp.float32), batch, jnp.zeros(len(batch["value"])))
    return {name: general.finished_mean(own.by_name[name], np.asarray(each)) for name, each in values.items()}


def test_metrics_by_hand():
    # 100 and 200 forecast as 110 and 160; shift and scale as of a window
    found = measured((), [[1.0, 6.0]], value=[[0.0, 10.0]], shift=[100.0], scale=[10.0], error_scale=[20.0],
                     baselines=[[[1, 1], [0, 10], [0, 0]]])  # fmt: skip
    assert found["mae"] == pytest.approx(25)
    assert found["rmse"] == pytest.approx(np.sqrt((10**2 + 40**2) / 2), rel=1e-6)
    assert found["smape"] == pytest.approx((200 * 10 / 210 + 200 * 40 / 360) / 2, rel=1e-6)
    assert found["mase"] == pytest.approx(25 / 20)
    assert found["naive_mae"] == pytest.approx((10 + 90) / 2)
    assert found["seasonal_naive_mae"] == found["seasonal_naive_smape"] == 0
    assert found["drift_mase"] == pytest.approx(50 / 20)
    assert set(found) == {"loss", *(f"{prefix}{name}" for prefix in ("", *(f"{b}_" for b in BASELINES))
                                    for name in ("mae", "rmse", "smape", "mase"))}  # fmt: skip


def test_metrics_leave_out_what_is_not_observed_and_what_has_no_scale():
    found = measured((), [[1.0, 6.0], [3.0, 3.0]], value=[[0.0, 10.0], [0, 0]], observed=[[1, 0], [1, 1]],
                     shift=[0, 0], scale=[1, 1], error_scale=[2, 0], baselines=np.zeros((2, 3, 2)))  # fmt: skip
    assert found["mae"] == pytest.approx((1 + 3 + 3) / 3)
    assert found["mase"] == pytest.approx(1 / 2)
    nothing = measured((), [[0.0, 0.0]], value=[[0.0, 0.0]], error_scale=[0.0])
    assert nothing["smape"] == 0
    assert np.isnan(nothing["mase"])


def test_pinball_and_coverage_by_hand():
    np.testing.assert_allclose(
        pinball_errors(np.array([1.0, 1.0]), np.array([3.0, 3.0]), (0.1, 0.9)), [0.2, 1.8], rtol=1e-6
    )
    np.testing.assert_allclose(
        pinball_errors(np.array([3.0, 3.0]), np.array([1.0, 1.0]), (0.1, 0.9)), [1.8, 0.2], rtol=1e-6
    )
    found = measured((0.1, 0.5, 0.9), [[0, 2, 4, 5, 6, 7]], value=[[3.0, 9.0]], scale=[10.0])
    assert found["pinball"] == pytest.approx(10 * ((0.3 + 0.5 + 0.1) + (0.4 + 1.5 + 1.8)) / 6)
    assert found["coverage"] == 0.5
    assert found["mae"] == pytest.approx(10 * (1 + 3) / 2)  # of the median
    assert {each.name: each.unit for each in metrics_for((0.1, 0.5, 0.9))}["coverage"] == "aim 0.8"


def test_losses_are_means_over_what_was_observed():
    targets = {"value": jnp.array([[0.0, 4.0, 9.0]]), "observed": jnp.array([[1.0, 1.0, 0.0]])}
    outputs = jnp.array([[3.0, 2.0, 0.0]])
    for name, expected in (("mae", 2.5), ("mse", 6.5), ("huber", (2.5 + 1.5) / 2)):
        task = FORECASTING.make_task(series_config(loss__name=name), open_source(series_config()))
        losses = task.losses(LossConfig(name=name))
        np.testing.assert_allclose(losses.train(outputs, targets), [expected])
    quantiles = jnp.repeat(outputs, 3, axis=1)
    task = FORECASTING.make_task(series_config(), open_source(series_config()))
    found = task.losses(LossConfig(name="pinball")).evaluate(quantiles, targets)
    np.testing.assert_allclose(found, [((0.9 + 0.5 + 0.1) * 3 + (0.1 + 0.5 + 0.9) * 2) / 6], rtol=1e-6)


def test_quantiles_do_not_cross():
    task = FORECASTING.make_task(series_config(), open_source(series_config()))
    crossed = jnp.tile(jnp.array([[3.0, 1.0, 2.0]]), (2, 6))
    np.testing.assert_array_equal(
        task.apply(lambda inputs: crossed, None), jnp.tile(jnp.array([[1.0, 2.0, 3.0]]), (2, 6))
    )


# ---- models


def call(model: Any, variables: Any, *inputs: Any, **options: Any) -> Any:
    """What a module makes of inputs."""
    return model.apply(variables, *inputs, **options)


def test_a_causal_convolution_sees_no_later_step():
    layer, x = CausalConv(5, 3, 2), jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 4)), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    found = call(layer, variables, x)
    kernel = variables["params"]["kernel"]
    by_hand = sum(x[:, 9 - 2 * (2 - place)] @ kernel[place] for place in range(3))
    np.testing.assert_allclose(found[:, 9], by_hand, rtol=1e-4, atol=1e-5)
    for step in (0, 5, 11):
        changed = call(layer, variables, x.at[:, step].add(1.0))
        np.testing.assert_array_equal(changed[:, :step], found[:, :step])
        assert not np.allclose(changed[:, step], found[:, step])


def test_all_of_a_tcn_is_causal_and_reaches_as_far_as_it_says():
    from jaxcnn.layers.features import FEATURES

    model = TCN(num_classes=3, horizon=3, hidden=(6, 6, 6))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 43, 2)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    features = lambda x: call(model, variables, x, train=False, mutable=[FEATURES])[1][FEATURES]["stage3"][0, 0]
    by_input = jax.jacobian(lambda x: features(x).sum(axis=-1))(x)[:, 0, :40]  # [output step, input step, inputs]
    reaches = np.abs(by_input).sum(axis=-1) > 0
    assert not np.triu(reaches, 1).any()
    assert reaches[39].argmax() == 39 - 2 * 2 * (1 + 2 + 4)


@pytest.mark.parametrize("name", list(FORECASTERS))
def test_a_forecast_is_of_the_past_and_of_the_calendar_alone(name):
    """Values of the horizon are 0 in the inputs; were they not, no model would look at them."""
    model = FORECASTERS[name](num_classes=8, horizon=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20, 4)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    forecast = jax.jit(lambda x: call(model, variables, x, train=False))
    found = forecast(x)
    assert (found.shape, found.dtype) == ((3, 8), jnp.float32)
    np.testing.assert_array_equal(forecast(x.at[:, 16:, :2].add(5.0)), found)
    later = forecast(x.at[:, 17, 2].add(5.0))  # the calendar of the second step ahead
    assert not np.allclose(later[:, 2:4], found[:, 2:4])
    np.testing.assert_allclose(
        jnp.delete(later, jnp.array([2, 3]), axis=1), jnp.delete(found, jnp.array([2, 3]), axis=1), rtol=1e-5
    )
    without = FORECASTERS[name](num_classes=8, horizon=4).init(jax.random.key(0), x[..., :2], train=False)
    assert "head_calendar" not in without["params"]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recursive_forecasts_are_those_of_a_loop(cell):
    model = FORECASTERS[f"forecast_{cell}"](num_classes=12, horizon=4, hidden=(5, 5), recursive=True, fed_back=1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 14, 4)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    params = variables["params"]
    layer = Recurrent(cell, 5, 2)
    head = lambda h: h @ params["head"]["kernel"] + params["head"]["bias"]
    outputs, carry = call(layer, {"params": params["recurrent"]}, x[:, :10])
    made = [head(outputs[:, -1])]
    for step in range(3):
        value = made[-1][:, 1:2]
        inputs = jnp.concatenate([value, jnp.ones_like(value), x[:, 10 + step, 2:]], axis=1)
        outputs, carry = call(layer, {"params": params["recurrent"]}, inputs[:, None], carry)
        made.append(head(outputs[:, -1]))
    np.testing.assert_allclose(
        call(model, variables, x, train=False), jnp.concatenate(made, axis=1), rtol=1e-4, atol=1e-6
    )


def test_the_moving_mean_repeats_the_ends():
    values = np.random.default_rng(0).normal(size=(2, 9))
    padded = np.pad(values, ((0, 0), (2, 2)), mode="edge")
    expected = np.stack([padded[:, n : n + 5].mean(axis=1) for n in range(9)], axis=1)
    np.testing.assert_allclose(moving_mean(jnp.float32(values), 5), expected, rtol=1e-4, atol=1e-6)


def test_parameter_counts():
    """By hand: 24 steps of the past and a horizon of 6, with three quantiles, without a calendar."""
    counts = {
        "linear": 2 * 24 * 18 + 18,
        "forecast_lstm": 4 * 64 * (2 + 64 + 2) + 64 * 18 + 18,
        "forecast_gru": 3 * 64 * (2 + 64 + 2) + 64 * 18 + 18,
        "forecast_rnn": 64 * (2 + 64 + 2) + 64 * 18 + 18,
        "tcn": (6 * 32 + 32 + 3 * 32) + 7 * (96 * 32 + 32) + (2 * 32 + 32) - 3 * 32 + 32 * 18 + 18,
        "nbeats": 6 * (48 * 128 + 128 + 3 * (128 * 128 + 128) + 129 * 24 + 129 * 18),
    }
    for name, count in counts.items():
        run, _ = build(series_config(model__name=name))
        assert sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params)) == count, name


# ---- runs


@pytest.fixture(scope="module")
def sales_run(tmp_path_factory) -> Path:
    """Forecasts of two series that have been learned."""
    folder = tmp_path_factory.mktemp("sales")
    config = series_config(
        sales(folder), num_steps=150, eval_every_epochs=10, checkpoint__every_steps=50, optimizer__ema_decay=0.9,
        early_stop__patience_evaluations=50, forecast__calendar=True, telemetry__every_steps=50,
    )  # fmt: skip
    train(config, folder / "run")
    return folder


def test_a_run_is_evaluated_beside_forecasts_without_a_model(sales_run, capsys):
    from jaxcnn import evaluate

    workdir = sales_run / "run"
    assert evaluate.main(["evaluate", "--workdir", str(workdir), "--resamples=50"], 0.0) == 0
    said = json.loads((workdir / "evaluation.json").read_text())
    scores = said["scores"]
    assert {f"{name}_{metric}" for name in BASELINES for metric in ("mae", "rmse", "smape", "mase")} < set(scores)
    assert scores["mase"] < scores["seasonal_naive_mase"] < scores["naive_mase"]
    assert 0 <= scores["coverage"] <= 1
    lines = [line.split(",") for line in (workdir / "predictions.csv").read_text().splitlines()]
    cells = dict(zip(lines[0], lines[1], strict=True))
    assert cells["identifier"] == "sales@2006-12"  # 90 months, of which the last six are forecast
    truth = dict(line.split(",")[:2] for line in (sales_run / "sales.csv").read_text().splitlines())
    assert [float(cells[f"truth_{n}"]) for n in range(1, 7)] == pytest.approx(
        [float(truth[m]) for m in months(6, 84)], rel=1e-6
    )
    assert float(cells["q0.1_1"]) <= float(cells["forecast_1"]) <= float(cells["q0.9_1"])
    errors = [abs(float(row[lines[0].index(f"truth_{n}")]) - float(row[lines[0].index(f"forecast_{n}")]))
              for row in lines[1:] for n in range(1, 7)]  # fmt: skip
    assert scores["mae"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert "seasonal_naive_mase" in capsys.readouterr().out


def test_a_file_is_forecast_to_a_file(sales_run, capsys):
    from jaxcnn import predict

    out, file = sales_run / "out.csv", sales_run / "more.csv"
    lines = (sales_run / "sales.csv").read_text().splitlines()
    file.write_text("\n".join(lines[:1] + lines[20:70]) + "\n")  # another stretch of time
    argv = ["predict", "--workdir", str(sales_run / "run"), str(file), "--csv", str(out)]
    assert predict.main(argv, 0.0) == 0
    made = [line.split(",") for line in out.read_text().splitlines()]
    assert made[0] == ["series", "month", "forecast", "q0.1", "q0.9"]
    assert [row[:2] for row in made[1:7]] == [["sales", month] for month in months(6, 69)]
    assert {row[0] for row in made[7:]} == {"costs"}
    truth = [float(line.split(",")[1]) for line in lines[70:76]]
    assert np.abs(np.array([float(row[2]) for row in made[1:7]]) - truth).max() < 15
    file.write_text("\n".join(lines[:11]) + "\n")
    assert predict.main(argv, 0.0) == 1
    assert f"{file}, series sales, after 2000-10: it has 10 steps, and a forecast needs 24" in capsys.readouterr().err
    for text, message in (
        ("month,sales\n2000-01,1\n", "has no column 'costs'"),
        ("month,sales,costs\n2000-01-01,1,2\n", "writes stamps as %Y-%m-%d, and the run has learned %Y-%m"),
        ("month,sales,costs\n2000-01,1,2\n2000-03,1,2\n", "1 stamps are missing"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            predict.main(argv, 0.0)


def test_a_run_is_reported_and_diagnosed(sales_run):
    from jaxcnn import diagnose
    from jaxcnn.report import __main__ as report

    workdir, page = str(sales_run / "run"), sales_run / "page"
    assert diagnose.main(["diagnose", "--workdir", workdir, "--json", str(sales_run / "found.json")], 0.0) == 0
    assert report.main(["report", "--workdir", workdir, "--output", str(page)], 0.0) == 0
    text = (page / "report.html").read_text()
    assert "could not be made" not in text.lower()
    for words in ("seasonal naive", "The band lies between q0.1 and q0.9", "steps ahead", "sales@2006-12"):
        assert words in text, words
    assert (sales_run / "run" / "telemetry.jsonl").exists()
    assert {"errors_ahead.png", "forecast_0.png"} <= {each.name for each in (page / "report").iterdir()}
    assert report.main(["report", "--workdir", workdir, "--output", str(page), "--quick"], 0.0) == 0
    assert "sales@2006-12" not in (page / "report.html").read_text()


def test_a_folder_whose_series_make_no_sense_is_refused(sales_run, tmp_path):
    from jaxcnn.results.finished import load

    saved = json.loads((sales_run / "run" / "config.json").read_text())
    series = saved["data"]["series"]
    for change, message in (
        ({"series": {**series, "season": 0}}, "season"),
        ({"series": {**series, "clock": {**series["clock"], "step": 0}}}, "step"),
        ({"series": {**series, "clock": {**series["clock"], "form": "%s"}}}, "is no clock"),
        ({"series": {**series, "clock": {**series["clock"], "unit": "moon"}}}, "is no clock"),
        ({"series": None}, "series"),
    ):
        data = {**saved["data"], **change}
        if change["series"] is None:
            del data["series"]
        (tmp_path / "config.json").write_text(json.dumps({**saved, "data": data}))
        with pytest.raises(UserError) as error:
            load(str(tmp_path))
        assert message in str(error.value)


@pytest.mark.slow
def test_a_run_goes_on_streams_and_spreads(tmp_path):
    """Killed and resumed, and streamed: bit for bit. Eight devices by jit and by pmap: to rounding."""
    options: dict[str, Any] = dict(model__name="forecast_lstm", model__hidden=(4,), model__dropout_rate=0.1)
    config = series_config(**options, num_devices=1)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(step))
    train(config, tmp_path / "resumed")
    assert_same_arrays(arrays(tmp_path / "whole", config), arrays(tmp_path / "resumed", config))
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "resumed" / "metrics.jsonl").read_bytes()
    streamed = series_config(**options, num_devices=1, data__resident=False)
    train(streamed, tmp_path / "streamed")
    assert_same_arrays(arrays(tmp_path / "whole", config), arrays(tmp_path / "streamed", streamed))
    one = arrays(tmp_path / "whole", config)["state/params/head/kernel"]
    for mode in ("jit", "pmap"):
        eight = series_config(**options, num_devices=8, parallel=mode)
        train(eight, tmp_path / mode)
        np.testing.assert_allclose(
            arrays(tmp_path / mode, eight)["state/params/head/kernel"], one, rtol=1e-3, atol=1e-5
        )


def test_a_run_ends_early_and_is_previewed(tmp_path):
    config = series_config(optimizer__learning_rate=1e-30, num_steps=200, early_stop__patience_evaluations=2)
    train(config, tmp_path / "run")
    assert rows(tmp_path / "run", "validation")[-1]["step"] < 60
    run, _ = build(series_config(forecast__recursive=True, model__name="forecast_gru", model__hidden=(4,)))
    text = io.StringIO()
    console = PatientConsole(file=text, width=200)
    preview(run, console, experiment="forecasting", workdir=epath.Path(tmp_path))
    said = text.getvalue()
    assert "3 series, 24 steps to forecast 6" in said
    assert "MiB" in said


def test_configs_of_before_load():
    old = to_dict(Config())
    del old["forecast"], old["loss"]["quantiles"]
    assert from_dict(old) == Config()


def test_drawn_series_are_of_their_seed():
    digests = [make_seasonal(seed).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
