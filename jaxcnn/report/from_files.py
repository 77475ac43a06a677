"""Sections that a run's files are enough for: curves, results, what differs between runs, how each came about."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from html import escape

import numpy as np

from jaxcnn.data.sheet import spread
from jaxcnn.files import to_json
from jaxcnn.fingerprints import same_data
from jaxcnn.report import figures
from jaxcnn.report.figures import Line
from jaxcnn.report.files import RunFiles, differences, flat, printable
from jaxcnn.report.page import Section, absent, code, figure, folded, grid, paragraph, table, tiles, words
from jaxcnn.report.svg import to_png, to_svg
from jaxcnn.results.diagnosis import Finding, diagnose
from jaxcnn.run.facts import SavedPredictions, read_facts
from jaxcnn.run.log import number_in_words

ROWS_IN_TABLES = 40  # of curves as tables
_LONG = ("class_names", "class_counts", "vocabulary")  # facts of data that a record leaves out


def overview(run: RunFiles) -> Section:
    """The run in a sentence and in large numbers."""
    config, data, summary = run.saved["config"], run.saved["data"], run.summary
    experiment, model, seed = run.saved["experiment"], config["model"]["name"], config["seed"]
    sentence = f"Experiment {experiment}: {model} on {data['name']}, seed {seed}."
    values, metric, form = [], run.main_metric, _form(run.main_metric)
    for split in ("test", "validation"):
        measured = (summary or {}).get("splits", {}).get(split)
        if measured:
            note = f"n = {measured['num_examples']:,}; loss {number_in_words(measured['loss'])}"
            values.append((f"{split} {metric}", number_in_words(measured[metric], form), note))
    if summary is None:
        sentence += " This run has not finished; figures are as far as it came."
        if run.failed_at is not None:
            sentence += f" It ended at step {run.failed_at:,}, where the training loss was not finite."
        values_so_far = run.points("validation", metric)[1]
        if values_so_far:
            so_far = format(values_so_far[-1], form)
            values.append((f"validation {metric} so far", so_far, f"at step {run.last_step:,}"))
        share = f"{run.last_step / run.total_steps:.0%} of {run.total_steps:,} steps"
        values.append(("not finished", f"step {run.last_step:,}", share))
    else:
        sentence += f" The weights are those of {summary['weights']}."
        epochs = f"{summary['epochs']:.4g} epochs, {summary['step']:,} steps"
        values.append(("parameters", _short_count(summary["num_params"]), f"{summary['num_params']:,}"))
        values.append(("training", _duration(summary["seconds"]["train"]), epochs))
        device = f"{summary['num_devices']} x {summary['platform']}"
        what = summary.get("examples", "images")
        values.append((f"{what} per second", f"{summary['images_per_second']:,.0f}", f"in training, on {device}"))
    examples = " / ".join(f"{count:,} {split}" for split, count in data["num_examples"].items())
    shape = f"{' x '.join(map(str, data['image_shape']))} pixels; " if run.has_images else ""
    if data["class_names"]:
        values.append(("classes", f"{len(data['class_names']):,}", f"{shape}{examples}"))
    else:
        values.append(("examples", f"{sum(data['num_examples'].values()):,}", f"{shape}{examples}"))
    return Section("Overview", paragraph(words(printable(sentence)), css="soft") + tiles(values))


def _form(metric: str) -> str:
    return ".2%" if metric == "accuracy" else ".4g"


# ---- curves


def curves(runs: Sequence[RunFiles]) -> Section:
    """Curves of training and validation; of several runs, with training thin behind."""
    drawings: list[str] = []
    pictures: dict[str, bytes] = {}
    missing: list[str] = []
    for name, title, what, reason in (
        ("loss", "loss", "loss", "no row of metrics.jsonl has a loss yet"),
        *((name, name, name, f"no row of metrics.jsonl has an {name} yet") for name in _main_metrics(runs)),
        ("learning_rate", "learning rate", "", "no row of metrics.jsonl has a learning rate yet"),
        (
            "gradient_norm",
            "gradient norm",
            "",
            "there is no telemetry.jsonl in the run's folder: runs of few steps have none, nor those without telemetry",
        ),
        ("images_per_second", f"{_things(runs)} per second", "", "timing.jsonl has no rows"),
    ):
        lines = _lines(runs, name)
        if not lines:
            missing.append(f"No {title}: {reason}.")
            continue
        chart = figures.curves(
            lines, x_label="epoch", y_label=title, from_zero=name == "images_per_second",
            logarithmic=None if name in ("loss", "gradient_norm") else False,
        )  # fmt: skip
        caption = _caption(runs, name, lines, what)
        drawings.append(figure(to_svg(chart, describe=caption), caption))
        pictures[f"{name}.png"] = to_png(chart)
    body = (grid(drawings) if drawings else "") + "".join(map(absent, missing))
    body += "".join(
        folded(f"The validation rows of {run.name} as a table", _validation_table(run))
        for run in runs
        if any(row["split"] == "validation" for row in run.metrics)
    )
    return Section("Training", body, pictures)


def _things(runs: Sequence[RunFiles]) -> str:
    """What examples are called."""
    return "images" if all(run.has_images for run in runs) else "examples"


def _main_metrics(runs: Sequence[RunFiles]) -> list[str]:
    return [name for name in dict.fromkeys(run.main_metric for run in runs) if name != "loss"]


def _lines(runs: Sequence[RunFiles], name: str) -> list[Line]:
    alone = len(runs) == 1
    lines = []
    for number, run in enumerate(runs):
        if name in ("loss", *_main_metrics(runs)):
            train = run.points("train", name)
            validation = run.points("validation", name)
            if train[0]:
                label = "train" if alone else ("" if validation[0] else run.name)
                lines.append(Line(label, *train, 1 if alone else number, main=not validation[0]))
            if alone and run.averaged():
                lines.append(Line("validation", *validation, 2, main=False))
                lines.append(Line("val., average", *run.points("validation", f"ema_{name}"), 0))
            elif validation[0]:
                averaged = run.points("validation", f"ema_{name}") if run.averaged() else validation
                lines.append(Line("validation" if alone else run.name, *averaged, number))
            continue
        if name == "learning_rate":
            points = run.points("train", name)
        else:
            points = run.timed(run.timing if name == "images_per_second" else run.telemetry, name)
        if points[0]:
            lines.append(Line("" if alone else run.name, *points, number))
    return [line for line in lines if len(line.xs)]


def _caption(runs: Sequence[RunFiles], name: str, lines: Sequence[Line], what: str) -> str:
    thinned = any(len(line.xs) > figures.MOST_POINTS for line in lines)
    thin = f" Long lines are drawn as {figures.MOST_POINTS} means of neighbouring rows." if thinned else ""
    if name in ("loss", *_main_metrics(runs)):
        counts = runs[0].saved["data"]["num_examples"]
        n = f", n = {counts['validation']:,}" if len(runs) == 1 and "validation" in counts else ""
        of_metric = next((run for run in runs if run.main_metric == name), None)
        is_higher = name != "loss" and of_metric is not None and of_metric.higher_is_better
        direction = "Higher is better" if is_higher else "Lower is better"
        if len(runs) > 1:
            train = "strong is validation (of the weights' average, where one is kept), thin is training"
        else:
            train = "train is the mean over each logging interval, with augmentation and moving weights"
            train += f"; validation is the whole split as it is{n}" if "validation" in counts else ""
        return f"{what.capitalize()} over the epochs: {train}. {direction}; a gap that widens is overfitting.{thin}"
    return {
        "learning_rate": "The learning rate of each logged step, before any factor of its layer.",
        "gradient_norm": "The norm of the whole gradient at the steps that telemetry looked at: a spike may have "
        "thrown training back, a fall to nothing is a network that no longer learns.",
        "images_per_second": f"Training {_things(runs)} a second between logged steps, evaluation and saving left out: "
        "a dip is a machine that was busy, or data that came late.",
    }[name] + thin


def _validation_table(run: RunFiles) -> str:
    rows = [row for row in run.metrics if row["split"] == "validation"]
    columns = [name for name in rows[-1] if name not in ("split", "step", "epoch")]
    kept = [rows[number] for number in spread(len(rows), ROWS_IN_TABLES)]
    cells = [
        [f"{row['epoch']:g}", f"{row['step']:,}", *(number_in_words(row[c]) if c in row else "—" for c in columns)]
        for row in kept
    ]
    said = f"Validation of {run.name}" + (f", {len(kept)} of {len(rows)} rows" if len(kept) < len(rows) else "")
    return table(["epoch", "step", *columns], cells, caption=said, names=0)


# ---- diagnosis


def diagnosis(run: RunFiles, predictions: SavedPredictions | None = None) -> Section:
    """Findings of what is wrong with the run, in words.

    Args:
      predictions: of the split that the page is of; none: those that an evaluation has left in the run's folder.
    """
    facts = read_facts(run.workdir)
    facts = facts if predictions is None else replace(facts, predictions=predictions)
    findings = diagnose(facts)
    wrong = [each for each in findings if each.severity != "not examined"]
    others = [each for each in findings if each.severity == "not examined"]
    body = paragraph(f"Found: {len(wrong)}." if wrong else "Nothing found.") + _findings(wrong)
    if others:
        body += folded(f"Not examined: {len(others)}", _findings(others))
    return Section("Diagnosis", body)


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    items = []
    for each in findings:
        remedies = "<br>".join(f"<code>{escape(printable(remedy))}</code>" for remedy in each.remedies)
        items.append(
            f'<li class="{each.severity.split()[0]}"><p><b>{escape(each.name)}</b> '
            f'<span class="soft">{escape(each.severity)}</span></p>'
            f"<p>{escape(printable(each.sentence))}</p>{f'<p>{remedies}</p>' if remedies else ''}</li>"
        )
    return f'<ul class="findings">{"".join(items)}</ul>'


# ---- several runs


def comparison(runs: Sequence[RunFiles]) -> Section:
    """Results side by side, and what differs between the configs."""
    measures: list[tuple[str, Callable[[RunFiles], str]]] = [
        ("status", lambda run: "finished" if run.summary else f"at step {run.last_step:,} of {run.total_steps:,}")
    ]
    for split in ("test", "validation"):
        for metric, form in (*((name, _form(name)) for name in _main_metrics(runs)), ("loss", ".4f")):
            measures.append((f"{split} {metric}", partial(_measured, split=split, metric=metric, form=form)))
    measures += [
        ("parameters", lambda run: _of_summary(run, lambda s: f"{s['num_params']:,}")),
        ("epochs", lambda run: _of_summary(run, lambda s: f"{s['epochs']:.4g}")),
        ("training", lambda run: _of_summary(run, lambda s: _duration(s["seconds"]["train"]))),
        (f"{_things(runs)} per second", lambda run: _of_summary(run, lambda s: f"{s['images_per_second']:,.0f}")),
        ("weights", lambda run: _of_summary(run, lambda s: s["weights"])),
    ]
    rows = [[what, *(value(run) for run in runs)] for what, value in measures]
    names = [run.name for run in runs]
    body = table(["", *names], rows, caption="Results")
    changed = differences(runs)
    if not changed:
        body += paragraph("The configs are the same, the seed too.")
    else:
        body += table(["field", *names], [[name, *values] for name, values in changed.items()], caption="What differs")
        body = f'<div class="side">{body}</div>\n' + _over_seeds(runs, changed)
    if not all(same_data(run.saved["data"]["fingerprint"], runs[0].saved["data"]["fingerprint"]) for run in runs):
        body += absent("These runs were trained on different data: their accuracies do not compare.")
    elif len({run.saved["data"].get("splits") for run in runs}) > 1:
        body += absent("These runs split the data differently: their validation accuracies do not compare.")
    return Section("Results", body)


def _over_seeds(runs: Sequence[RunFiles], changed: dict[str, list[str]]) -> str:
    accuracies = [run.summary["splits"].get("test", {}).get("accuracy") for run in runs if run.summary]
    if set(changed) != {"seed"} or None in accuracies or len(accuracies) != len(runs):
        return ""
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    return paragraph(
        f"Only the seed differs: test accuracy {100 * mean:.2f} ± {100 * std:.2f} % (mean ± standard deviation, "
        f"n = {len(accuracies)})."
    )


def _measured(run: RunFiles, *, split: str, metric: str, form: str) -> str:
    measured = (run.summary or {}).get("splits", {}).get(split, {})
    if measured:
        return number_in_words(measured[metric], form) if metric in measured else "—"
    seen = run.points("validation", metric)[1] if split == "validation" else []
    return f"{number_in_words(seen[-1], form)} so far" if seen else "—"


def _of_summary(run: RunFiles, say: Callable[[dict], str]) -> str:
    return "—" if run.summary is None else say(run.summary)


# ---- how it came about


def record(run: RunFiles) -> Section:
    """Command, versions and config: what it takes to make the run again."""
    command = run.saved.get("command") or []
    versions = (run.summary or {}).get("versions") or run.saved.get("versions") or {}
    body = paragraph(f"The run lies in {words(str(run.workdir))}.")
    if command:
        body += code("python -m jaxcnn.main " + shlex.join(command[1:]))
    if versions:
        rows = [[name, str(version)] for name, version in versions.items()]
        body += folded("Versions", table(["package", "version"], rows, names=2, label="versions"), is_open=True)
    if run.summary:
        spent = [[what, f"{seconds:,.1f}"] for what, seconds in run.summary["seconds"].items()]
        body += folded("Where the time went", table(["", "seconds"], spent, label="seconds"))
    fields = flat(run.saved["config"])
    rows = [[name, to_json(value)] for name, value in fields.items()]
    body += folded(f"Config, all {len(rows)} fields", table(["field", "value"], rows, names=2, label="config"))
    data = {name: value for name, value in run.saved["data"].items() if name not in _LONG}
    body += folded("Data", code(to_json(data, indent=2)))
    return Section("Record", body)


def _short_count(number: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
