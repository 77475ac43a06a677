"""Sections about what the network said of a split: scores, confusion, calibration, mistakes, embedding."""

from collections.abc import Sequence

import numpy as np

from jaxcnn.data.sheet import Row
from jaxcnn.report import figures
from jaxcnn.report.files import shown_name
from jaxcnn.report.opened import Opened
from jaxcnn.report.page import Cell, Section, absent, figure, folded, grid, paragraph, picture, sheet, table, words
from jaxcnn.report.svg import to_png, to_svg
from jaxcnn.results import looks
from jaxcnn.results.explain import overlay
from jaxcnn.results.members import NotCalibrated
from jaxcnn.tasks.classification.scores import SHOWN_SCORES

MISTAKES = 20
CONFUSIONS = 10
CLASSES_OPEN = 30  # classes up to which a table of them is not folded


def scores(opened: Opened) -> Section:
    """Every score with its interval."""
    evaluation = opened.evaluation
    rows = []
    for name, title in SHOWN_SCORES.items():
        value = evaluation.scores.get(name)
        if value is None:
            continue
        low, high = evaluation.intervals.get(name, (None, None))
        rows.append([title, f"{value:.4f}", "" if low is None else f"{low:.4f} – {high:.4f}"])
    facts = evaluation.interval_facts
    whole = table(["score", "value", f"{facts['level']:.0%} interval"], rows, caption="Of all classes")
    note = f"{opened.of_what} Intervals: {facts['method']}, {facts['resamples']:,} resamples, seed {facts['seed']}."
    if evaluation.tta != "none":
        note += f" Each image was seen in several views ({evaluation.tta})."
    each = _classes(opened)
    if len(opened.names) <= CLASSES_OPEN:
        body = paragraph(note, css="note soft") + f'<div class="side">{whole}{each}</div>'
    else:
        body = paragraph(note, css="note soft") + whole + folded(f"All {len(opened.names):,} classes", each)
    body += "".join(absent(f"Note: {each}") for each in evaluation.notes)
    empty = [name for name, count in zip(opened.names, evaluation.classes["support"], strict=True) if not count]
    if empty:
        body += absent(f"Without images in this split: {', '.join(empty[:10])}{' …' if len(empty) > 10 else ''}.")
    return Section("Scores", body)


def _classes(opened: Opened) -> str:
    evaluation, names = opened.evaluation, opened.names
    of_class, matrix = evaluation.classes, np.asarray(evaluation.confusion_matrix)
    rows: list[list[str | Cell]] = []
    for number, name in enumerate(names):
        support = int(of_class["support"][number])
        others = np.where(np.arange(len(names)) == number, 0, matrix[number])
        most = int(others.argmax())
        row: list[str | Cell] = [name, names[most] if others[most] else "—", Cell(f"{support:,}", support)]
        for score in ("recall", "precision", "f1", "roc_auc"):
            value = of_class[score][number]
            missing = value is None or (score == "recall" and not support)
            row.append(Cell("—", -1.0) if missing else Cell(f"{value:.3f}", value, share=value))
        rows.append(row)
    columns = ["class", "mostly taken for", "images", "recall", "precision", "F1", "ROC AUC"]
    return table(columns, rows, caption="Of each class; a column's head sorts", names=2, sortable=True)


def confusions(opened: Opened) -> Section:
    """The matrix, and the most frequent mistakes in words."""
    return confusion(opened.evaluation.confusion_matrix, opened.names, things="images", of_what=opened.of_what)


def confusion(
    counts: Sequence[Sequence[int]] | np.ndarray, names: Sequence[str], *, things: str, of_what: str
) -> Section:
    """The same of counts [labels, predictions]. `things`: what was predicted, in words; `of_what`: of which split."""
    matrix = np.asarray(counts)
    drawing, titles = figures.confusion_matrix(matrix, names)
    right = int(np.trace(matrix))
    say = (
        f"Confusion matrix: a row is what {things} are, a column what they were taken for; blue is right "
        f"({right:,}), orange wrong ({matrix.sum() - right:,}), and the shade goes by the root of its share of the "
        f"row. {of_what}"
    )
    wrong = matrix - np.diag(np.diag(matrix))
    most = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    places = [
        (row, column) for row, column in zip(*np.unravel_index(most, wrong.shape), strict=True) if wrong[row, column]
    ]
    rows = [
        [names[row], names[column], f"{wrong[row, column]:,}", f"{wrong[row, column] / matrix[row].sum():.1%}"]
        for row, column in places
    ]
    columns = ["label", "taken for", things, "of the label"]
    frequent = paragraph("Not one prediction is wrong.")
    if rows:
        frequent = table(columns, rows, names=2, caption="The most frequent mistakes")
    body = grid([figure(to_svg(drawing, describe=say, titles=titles), say), f"<div>{frequent}</div>"])
    if len(names) <= figures.CELLS_WITH_NUMBERS:
        cells = [[name, *(f"{value:,}" for value in row)] for name, row in zip(names, matrix.tolist(), strict=True)]
        whole = table(["label", *names], cells, caption="Rows are labels, columns predictions")
        body += folded("The matrix as a table", whole)
    return Section("Confusion", body, {"confusion_matrix.png": to_png(drawing)})


def calibration(opened: Opened) -> Section:
    """The reliability diagram, and what a temperature would change."""
    evaluation = opened.evaluation
    bins = {
        name: np.array([np.nan if value is None else value for value in values], float)
        for name, values in evaluation.reliability.items()
    }
    drawing = figures.reliability(bins["confidence"], bins["accuracy"], bins["count"])
    ece = evaluation.scores["ece"]
    mean = float(np.nansum(bins["confidence"] * bins["count"]) / bins["count"].sum())
    accuracy = evaluation.scores["accuracy"] or 0.0
    tendency = "surer than right" if mean > accuracy else "less sure than right"
    say = (
        "Reliability: a blue line is the share of the predictions of that confidence that is right; orange is the gap "
        f"to what they claim (dashed: none); pale bins have fewer than {figures.FEW_EXAMPLES} images. Expected "
        f"calibration error {ece:.4f} over {len(bins['count'])} bins; on average {tendency} ({mean:.4f} against "
        f"{accuracy:.4f}). {opened.of_what}"
    )
    parts = [figure(to_svg(drawing, describe=say), say)]
    scaling = evaluation.calibration
    if isinstance(scaling, NotCalibrated):
        parts.append(f"<div>{absent(f'No temperature: {scaling.reason}.')}</div>")
    else:
        rows = [
            [SHOWN_SCORES[name], f"{scaling.before[name]:.4f}", f"{after:.4f}"] for name, after in scaling.after.items()
        ]
        said = (
            f"Logits divided by a temperature of {scaling.temperature:.3f}, fitted on validation "
            f"(n = {scaling.num_examples:,}), would change"
        )
        if scaling.at_limit:
            said += " (it is at the limit of those tried, as where validation has hardly a mistake)"
        parts.append(f"<div>{table(['', 'as it is', 'with temperature'], rows, caption=said)}</div>")
    return Section("Calibration", grid(parts), {"reliability.png": to_png(drawing)})


# ---- images


def mistakes(opened: Opened) -> Section:
    """The surest wrong predictions, with where the network looked."""
    evaluation, model, names = opened.evaluation, opened.model, opened.names
    chosen = evaluation.surest_mistakes(MISTAKES)
    if not len(chosen):
        return Section("Mistakes", paragraph(f"None: every prediction is right. {opened.of_what}"))
    images = looks.images_of(opened.examples, evaluation.places[chosen], image_shape=model.image_shape)
    heats, without = looks.heat_maps(model, images)
    probabilities, items, rows = evaluation.probabilities, [], []
    for place, (number, image) in enumerate(zip(chosen, images, strict=True)):
        label, prediction = int(evaluation.labels[number]), int(evaluation.predicted[number])
        sure, true = (float(probabilities[number][each]) for each in (prediction, label))
        alt = f"{names[label]}, taken for {names[prediction]}"
        shown = [image] if heats is None else [image, overlay(image, heats[place])]
        pictures = picture(image, alt)
        if heats is not None:
            pictures += picture(shown[1], "where it looked")
        identifier = shown_name(evaluation.identifiers[number])
        items.append(
            f"<li><div class='pair'>{pictures}</div><div class='said'>"
            f"said {words(names[prediction])} <span class='wrong'>{sure:.1%}</span><br>"
            f"is <b>{words(names[label])}</b> <span class='soft'>{true:.1%}</span><br>"
            f"<span class='soft'>{words(identifier)}</span></div></li>"
        )
        rows.append(Row(f"{names[label]} as {names[prediction]}", shown))
    looked = "" if heats is None else (
        " Right of each, Grad-CAM for the class that was predicted: red is what spoke for it most, blue what did not."
    )  # fmt: skip
    count = int((evaluation.predicted != evaluation.labels).sum())
    say = f"The {len(chosen)} surest of {count:,} mistakes: what it said and how sure, what it is.{looked}"
    body = paragraph(f"{say} {opened.of_what}", css="note soft")
    body += f'<ul class="pictures">{"".join(items)}</ul>'
    body += absent(f"No Grad-CAM: {without}.") if without else ""
    return Section("Mistakes", body, {"mistakes.png": sheet(rows)})


def embedding(opened: Opened) -> Section:
    """The features that the head sees, in two dimensions."""
    evaluation = opened.evaluation
    embedded = looks.embed(opened.model, opened.examples, evaluation)
    labels = evaluation.labels[embedded.chosen]
    wrong = evaluation.predicted[embedded.chosen] != labels
    many = len(opened.names) > figures.LABELLED_CLASSES
    colours = "orange points are mistakes" if many else "a colour is a class, a ring a mistake"
    is_part = len(labels) < len(evaluation.labels)
    count = f"{len(labels):,} of {len(evaluation.labels):,} images" if is_part else f"All {len(labels):,} images"
    tsne = f"t-SNE (perplexity {embedded.perplexity:g}): neighbours are alike, distances between groups mean little"
    pca = f"PCA: the two directions of most variance, {embedded.explained:.0%} of it; distances are true within them"
    drawings, pictures = [], {}
    for name, title, points, how in (("tsne", "t-SNE", embedded.tsne, tsne), ("pca", "PCA", embedded.pca, pca)):
        drawing = figures.embedding(points, labels, wrong, opened.names, title=title)
        say = f"{how}. {count} by the {embedded.num_features:,} features that the head sees; {colours}."
        drawings.append(figure(to_svg(drawing, describe=say), say))
        pictures[f"{name}.png"] = to_png(drawing)
    return Section("Embedding", grid(drawings) + paragraph(opened.of_what, css="note soft"), pictures)
