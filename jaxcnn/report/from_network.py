"""Sections that need the trained network, most of them its data too."""

import copy
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxcnn import workdir as workdir_lib
from jaxcnn.build import build
from jaxcnn.config import Config
from jaxcnn.data import Source, Split, open_source
from jaxcnn.data.sheet import Row, draw
from jaxcnn.diagnosis import Predictions
from jaxcnn.errors import UserError
from jaxcnn.explain import overlay
from jaxcnn.feed import Progress
from jaxcnn.measure import Evaluation, evaluate_run, step_of
from jaxcnn.preview import AugmentedImages, augmented_images
from jaxcnn.report import figures, network
from jaxcnn.report.files import RunFiles, printable
from jaxcnn.report.layers import layers
from jaxcnn.report.page import Cell, Section, absent, figure, folded, grid, paragraph, picture, table, words
from jaxcnn.report.svg import to_png, to_svg
from jaxcnn.trained import TrainedModel, load

MISTAKES = 12
CONFUSIONS = 10
CLASSES_OPEN = 30  # classes up to which a table of them is not folded
LIKELIEST = 5
AUGMENTED_IMAGES, AUGMENTED_VERSIONS = 6, 6
_SCORES = {
    "accuracy": "Accuracy", "top5_accuracy": "Top-5 accuracy", "loss": "Loss", "nll": "Negative log likelihood",
    "balanced_accuracy": "Balanced accuracy", "macro_precision": "Macro precision", "macro_recall": "Macro recall",
    "macro_f1": "Macro F1", "weighted_f1": "Weighted F1", "cohen_kappa": "Cohen's kappa", "matthews": "Matthews' coefficient",
    "macro_roc_auc": "Macro ROC AUC", "macro_average_precision": "Macro average precision", "ece": "Calibration error (ECE)",
    "brier": "Brier score",
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A run's network and data, each opened when it is first needed."""

    run: RunFiles
    step: str  # best, last, or a number
    split: str
    image: int  # place in the split of the example whose feature maps are shown
    data_dir: str | None
    progress: Progress

    @cached_property
    def model(self) -> TrainedModel:
        """The weights that are looked at."""
        return load(str(self.run.workdir), self.step)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Of the split."""
        return evaluate_run(
            [self.run.workdir], steps=[self.step], split=self.split, data_dir=self.data_dir, progress=self.progress
        )

    @cached_property
    def config(self) -> Config:
        """The run's, for this machine."""
        config = copy.deepcopy(self.model.config)
        config.data.dir = self.data_dir or config.data.dir
        config.data.exclude = None  # what is left of it stands in the run's splits
        config.platform = None
        config.num_devices = 1
        return config

    @cached_property
    def source(self) -> Source:
        """The run's data; that they are the same the evaluation has checked."""
        assert self.evaluation
        return open_source(self.config.data, progress=self.progress, kept=workdir_lib.read_splits(self.run.workdir))

    @property
    def examples(self) -> Split:
        """Of the split."""
        return self.source.splits[self.split]

    @property
    def names(self) -> list[str]:
        """Of the classes, as they can be printed."""
        return [printable(name) for name in self.model.class_names]

    @property
    def predictions(self) -> Predictions:
        """Of the split, for diagnosis."""
        evaluation, names = self.evaluation, self.model.class_names
        predicted = evaluation.logits.argmax(axis=1)
        return Predictions(
            identifiers=evaluation.identifiers,
            labels=[names[label] for label in evaluation.labels],
            predictions=[names[prediction] for prediction in predicted],
            confidences=evaluation.probabilities.max(axis=1).tolist(),
        )

    @property
    def of_what(self) -> str:
        """Ends a caption: which weights, which split, how many."""
        step, count = step_of(self.model), len(self.evaluation.labels)
        weights = "the weights' average of" if self.run.averaged() else "the weights of"
        chosen = "best on validation" if self.step == "best" and self.run.points("validation", "loss")[0] else self.step
        chosen = "last" if chosen == "best" else chosen
        return f"{self.split} split, n = {count:,}; {weights} step {step:,} ({'chosen: ' if chosen.isdigit() else ''}{chosen})"


# ---- numbers


def scores(study: Study) -> Section:
    """Every score with its interval."""
    evaluation = study.evaluation
    rows = []
    for name, title in _SCORES.items():
        value = evaluation.scores.get(name)
        if value is None:
            continue
        low, high = evaluation.intervals.get(name, (None, None))
        rows.append([title, f"{value:.4f}", "" if low is None else f"{low:.4f} – {high:.4f}"])
    facts = evaluation.interval_facts
    whole = table(["score", "value", f"{facts['level']:.0%} interval"], rows, caption="Of all classes")
    note = f"{_sentence(study)} Intervals: {facts['method']}, {facts['resamples']:,} resamples, seed {facts['seed']}."
    if evaluation.tta != "none":
        note += f" Each image was seen in several views ({evaluation.tta})."
    each = _classes(study)
    if len(study.names) <= CLASSES_OPEN:
        body = paragraph(note, css="note soft") + f'<div class="side">{whole}{each}</div>'
    else:
        body = paragraph(note, css="note soft") + whole + folded(f"All {len(study.names):,} classes", each)
    body += "".join(absent(f"Note: {each}") for each in evaluation.notes)
    empty = [name for name, count in zip(study.names, evaluation.classes["support"], strict=True) if not count]
    if empty:
        body += absent(f"Without images in this split: {', '.join(empty[:10])}{' …' if len(empty) > 10 else ''}.")
    return Section("Scores", body)


def _classes(study: Study) -> str:
    evaluation, names = study.evaluation, study.names
    found, matrix = evaluation.classes, np.asarray(evaluation.confusion_matrix)
    rows: list[list[str | Cell]] = []
    for number, name in enumerate(names):
        support = int(found["support"][number])
        others = np.where(np.arange(len(names)) == number, 0, matrix[number])
        most = int(others.argmax())
        row: list[str | Cell] = [name, names[most] if others[most] else "—", Cell(f"{support:,}", support)]
        for score in ("recall", "precision", "f1", "roc_auc"):
            value = found[score][number]
            missing = value is None or (score == "recall" and not support)
            row.append(Cell("—", -1.0) if missing else Cell(f"{value:.3f}", value, share=value))
        rows.append(row)
    columns = ["class", "mostly taken for", "images", "recall", "precision", "F1", "ROC AUC"]
    return table(columns, rows, caption="Of each class; a column's head sorts", names=2, sortable=True)


def confusions(study: Study) -> Section:
    """The matrix, and the most frequent mistakes in words."""
    evaluation, names = study.evaluation, study.names
    matrix = np.asarray(evaluation.confusion_matrix)
    drawing, titles = figures.confusion_matrix(matrix, names)
    right = int(np.trace(matrix))
    say = (
        f"Confusion matrix: a row is what an image is, a column what it was taken for; blue is right ({right:,}), orange "
        f"wrong ({matrix.sum() - right:,}), and the shade goes by the root of its share of the row. {_sentence(study)}"
    )
    parts = [figure(to_svg(drawing, describe=say, titles=titles), say)]
    wrong = matrix - np.diag(np.diag(matrix))
    order = [(r, c) for r, c in zip(*np.unravel_index(np.argsort(-wrong, axis=None, kind="stable"), wrong.shape), strict=True)]
    rows = [
        [names[r], names[c], f"{wrong[r, c]:,}", f"{wrong[r, c] / matrix[r].sum():.1%}"] for r, c in order[:CONFUSIONS] if wrong[r, c]
    ]  # fmt: skip
    if rows:
        parts.append(
            "<div>"
            + table(["label", "taken for", "images", "of the label"], rows, names=2, caption="The most frequent mistakes")
            + "</div>"
        )
    else:
        parts.append(f"<div>{paragraph('Not one prediction is wrong.')}</div>")
    body = grid(parts)
    if len(names) <= figures.CELLS_WITH_NUMBERS:
        cells = [[name, *(f"{value:,}" for value in row)] for name, row in zip(names, matrix.tolist(), strict=True)]
        whole = table(["label", *names], cells, caption="Rows are labels, columns predictions")
        body += folded("The matrix as a table", whole)
    return Section("Confusion", body, {"confusion_matrix.png": to_png(drawing)})


def calibration(study: Study) -> Section:
    """The reliability diagram, and what a temperature would change."""
    evaluation = study.evaluation
    bins = {name: np.array([np.nan if x is None else x for x in values], float) for name, values in evaluation.reliability.items()}
    drawing = figures.reliability(bins["confidence"], bins["accuracy"], bins["count"])
    ece = evaluation.scores["ece"]
    mean = float(np.nansum(bins["confidence"] * bins["count"]) / bins["count"].sum())
    accuracy = evaluation.scores["accuracy"] or 0.0
    tendency = "surer than right" if mean > accuracy else "less sure than right"
    say = (
        "Reliability: a blue line is the share of the predictions of that confidence that is right; orange is the gap to what "
        f"they claim (dashed: none). Expected calibration error {ece:.4f} over {len(bins['count'])} bins; on average {tendency} "
        f"({mean:.4f} against {accuracy:.4f}). {_sentence(study)}"
    )
    parts = [figure(to_svg(drawing, describe=say), say)]
    found = evaluation.calibration
    if "not_done" in found:
        parts.append(f"<div>{absent('No temperature: ' + found['not_done'] + '.')}</div>")
    else:
        rows = [
            [_SCORES.get(name, name), f"{found['before'][name]:.4f}", f"{found['after'][name]:.4f}"] for name in found["after"]
        ]
        fitted = found["fitted_on"]
        said = (
            f"Logits divided by a temperature of {found['temperature']:.3f}, fitted on {fitted['split']} "
            f"(n = {fitted['num_examples']:,}), would change"
        )
        parts.append(f"<div>{table(['', 'as it is', 'with temperature'], rows, caption=said)}</div>")
    return Section("Calibration", grid(parts), {"reliability.png": to_png(drawing)})


# ---- images


def mistakes(study: Study) -> Section:
    """The surest wrong predictions, with where the network looked."""
    evaluation, model, names = study.evaluation, study.model, study.names
    chosen = network.mistakes(evaluation, MISTAKES)
    if not len(chosen):
        return Section("Mistakes", paragraph(f"None: every prediction is right. {_sentence(study)}"))
    images = network.images_of(model, study.examples, evaluation.places[chosen])
    heats, without = _heat_maps(model, images)
    items, rows = [], []
    for place, (number, image) in enumerate(zip(chosen, images, strict=True)):
        label, prediction = int(evaluation.labels[number]), int(evaluation.logits[number].argmax())
        sure, true = (float(evaluation.probabilities[number][each]) for each in (prediction, label))
        alt = f"{names[label]}, taken for {names[prediction]}"
        shown = [image] if heats is None else [image, overlay(image, heats[place])]
        pictures = picture(image, alt)
        if heats is not None:
            pictures = f'<div class="pair">{pictures}{picture(_smaller(shown[1]), "where it looked")}</div>'
        identifier = printable(evaluation.identifiers[number])
        items.append(
            f"<li>{pictures}<div class='said'>said {words(names[prediction])} <span class='wrong'>{sure:.1%}</span><br>"
            f"is <b>{words(names[label])}</b> <span class='soft'>{true:.1%}</span><br>"
            f"<span class='soft'>{words(identifier)}</span></div></li>"
        )
        rows.append(Row(f"{names[label]} as {names[prediction]}", shown))
    looked = "" if heats is None else (
        " Right of each, Grad-CAM for the class that was predicted: red is what spoke for it most, blue what did not."
    )  # fmt: skip
    say = f"The {len(chosen)} surest of {_num_wrong(evaluation):,} mistakes: what it said and how sure, what it is.{looked}"
    body = paragraph(f"{say} {_sentence(study)}", css="note soft")
    body += f'<ul class="pictures">{"".join(items)}</ul>'
    body += absent(f"No Grad-CAM: {without}.") if without else ""
    return Section("Mistakes", body, {"mistakes.png": _sheet(rows)})


def embedding(study: Study) -> Section:
    """What the head sees of the split, in two dimensions."""
    evaluation = study.evaluation
    found = network.embed(study.model, study.examples, evaluation)
    labels = evaluation.labels[found.chosen]
    wrong = evaluation.logits[found.chosen].argmax(axis=1) != labels
    many = len(study.names) > figures.LABELLED_CLASSES
    colours = "orange points are mistakes" if many else "a colour is a class, a ring a mistake"
    drawings, pictures = [], {}
    count = f"{len(labels):,} of {len(evaluation.labels):,} images" if len(labels) < len(evaluation.labels) else f"All {len(labels):,} images"
    for name, title, points, how in (
        ("tsne", "t-SNE", found.tsne, f"t-SNE (perplexity {found.perplexity:g}): neighbours are alike, distances between "
         "groups mean little"),
        ("pca", "PCA", found.pca, f"PCA: the two directions of most variance, {found.explained:.0%} of it; distances are true "
         "within them"),
    ):  # fmt: skip
        drawing = figures.embedding(points, labels, wrong, study.names, title=title)
        say = f"{how}. {count} by the {found.num_features:,} features that the head sees; {colours}."
        drawings.append(figure(to_svg(drawing, describe=say), say))
        pictures[f"{name}.png"] = to_png(drawing)
    return Section("Embedding", grid(drawings) + paragraph(_sentence(study), css="note soft"), pictures)


def filters(study: Study) -> Section:
    """The first layer's weights."""
    found = network.first_filters(study.model)
    images = "".join(picture(image, "") for image in found.images)
    shown = f"{len(found.images)} of {found.total}" if len(found.images) < found.total else f"All {found.total}"
    size = f"{found.images.shape[2]} x {found.images.shape[1]}"
    unit = "filters" if found.kind == "convolution" else "units"
    say = (
        f"{shown} {unit} of {found.layer}, the first {found.kind}, {size} pixels, each scaled by its largest weight: middle "
        "grey is 0. Edges, blobs and colours are learned; noise is what training left as it was."
    )
    wide = " wide" if max(found.images.shape[1:3]) <= 12 else ""
    body = figure(f'<div class="maps{wide}" role="img" aria-label="filters">{images}</div>', say)
    return Section("Filters", body, {"filters.png": _sheet([Row("", row) for row in _rows(found.images, 12)])})


def feature_maps(study: Study) -> Section:
    """Feature maps the stages."""
    from matplotlib import colormaps

    evaluation, model, names = study.evaluation, study.model, study.names
    if not 0 <= study.image < len(evaluation.labels):
        raise UserError(f"--image={study.image}: the {study.split} split has images 0 to {len(evaluation.labels) - 1:,}")
    image = network.images_of(model, study.examples, [evaluation.places[study.image]])[0]
    stages = network.feature_maps(model, image)
    probabilities = evaluation.probabilities[study.image]
    likeliest = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
    label = int(evaluation.labels[study.image])
    said = ", ".join(f"{words(names[each])} {probabilities[each]:.1%}" for each in likeliest)
    heats, _ = _heat_maps(model, image[None])
    pair = picture(image, f"the image, {names[label]}")
    if heats is not None:
        pair += picture(_smaller(overlay(image, heats[0])), "where it looked")
    identifier = words(printable(evaluation.identifiers[study.image]))
    body = (
        f'<div class="pictures"><div><div class="pair">{pair}</div></div></div>'
        f'<p class="note">Image {study.image:,} of {study.split}, {identifier}: <b>{words(names[label])}</b>. It said {said}. '
        "(Another: --image N.)</p>"
    )
    rows = []
    for stage in stages:
        coloured = (255 * colormaps["magma"](stage.maps)[..., :3]).round().astype(np.uint8)
        height, width = stage.maps.shape[1:]
        shown = f"the {len(stage.maps)} of {stage.channels} channels that answer most" if len(stage.maps) < stage.channels else f"all {stage.channels} channels"
        body += f"<h4>{words(stage.name)} <span class='soft'>{width} x {height}, {shown}</span></h4>"
        body += f'<div class="maps" role="img" aria-label="feature maps">{"".join(picture(each, "") for each in coloured)}</div>'
        rows.append(Row(stage.name, list(coloured)))
    body += paragraph("Each map from its own lowest value (dark) to its highest (light); the stages in their order.", css="note soft")
    return Section("Feature maps", body, {"feature_maps.png": _sheet(rows)})


# ---- the model, the training images


def model_table(study: Study) -> Section:
    """Layers with their parameters, costs and times."""
    model = study.model
    batch = 8 if max(model.image_shape[:2]) > 64 else 32
    found, whole = layers(model.module, model.variables, model.image_shape, batch_size=batch)
    most = {name: max((getattr(each, name) for each in found), default=0) or 1 for name in ("num_params", "multiply_adds", "seconds")}
    rows: list[list[str | Cell]] = []
    for each in [*(each for each in found if each.num_params or each.multiply_adds), whole]:
        total = each is whole
        row: list[str | Cell] = [
            f"{model.config.model.name}, whole" if total else each.name,
            each.kind,
            " x ".join(map(str, each.output)),
        ]
        for name, shown in (
            ("num_params", f"{each.num_params:,}"),
            ("multiply_adds", f"{2 * each.multiply_adds / 1e6:,.4g}"),
            ("seconds", f"{1000 * each.seconds:.2f}"),
        ):
            value = getattr(each, name)
            row.append(Cell(shown, value, share=None if total else value / most[name]))
        rows.append(row)
    device = jax.devices()[0]
    say = (
        f"Layers as the model names them, for images of {' x '.join(map(str, model.image_shape))}. MFLOPs an image: two a multiply-add, "
        f"of convolutions and matrix products. Milliseconds: of {batch} images in evaluation on one {device.device_kind}, each layer "
        "with parameters compiled and run alone, median; the whole is measured, not summed: what stands between layers, and what the compiler "
        "makes of them together, is in it."
    )
    columns = ["layer", "kind", "output", "parameters", "MFLOPs", "ms"]
    body = table(columns, rows, caption=f"Layers of {model.config.model.name}", names=3) + paragraph(say, css="note soft")
    return Section("Layers", body)


def augmentation(study: Study) -> Section:
    """Training images as the model met them."""
    saved = study.run.saved["data"]
    run, feed = build(
        study.config,
        progress=study.progress,
        statistics=(saved["mean"], saved["std"]),
        kept_splits=workdir_lib.read_splits(study.run.workdir),
    )
    try:
        count = min(AUGMENTED_IMAGES, study.config.batch_size)
        shown: AugmentedImages = augmented_images(run, feed, num_images=count, num_versions=AUGMENTED_VERSIONS)
    finally:
        feed.close()
    columns = f"grid-template-columns:1fr 2% repeat({AUGMENTED_VERSIONS},1fr)"
    strips = f'<div class="strip soft" style="{columns}"><span>stored</span><i></i><span class="rest">as trained on</span></div>'
    rows = []
    for original, versions, label in zip(shown.originals, shown.versions, shown.labels, strict=True):
        name = study.names[int(np.argmax(label)) if np.ndim(label) else int(label)]
        drawn = "".join(picture(image, f"{name}, augmented") for image in versions)
        strips += f'<div class="strip" style="{columns}">{picture(original, f"{name}, as stored")}<i></i>{drawn}</div>'
        rows.append(Row(name, [original, *versions]))
    say = (
        f"The first {len(rows)} images of the first training batch: left as stored, then as the first step saw them, then as other "
        "steps would have: augmentation's whole pipeline, with normalising undone."
    )
    return Section("Augmentation", figure(f'<div class="one">{strips}</div>', say), {"augmentation.png": _sheet(rows)})


SECTIONS = {
    "Scores": scores,
    "Confusion": confusions,
    "Calibration": calibration,
    "Mistakes": mistakes,
    "Embedding": embedding,
    "Filters": filters,
    "Feature maps": feature_maps,
    "Layers": model_table,
    "Augmentation": augmentation,
}


def _sentence(study: Study) -> str:
    return f"{study.of_what[0].upper()}{study.of_what[1:]}."


def _num_wrong(evaluation: Evaluation) -> int:
    return int((evaluation.logits.argmax(axis=1) != evaluation.labels).sum())


def _heat_maps(model: TrainedModel, images: np.ndarray) -> tuple[np.ndarray | None, str]:
    """(Grad-CAM of each, or none; why none)."""
    if images.shape[-1] not in (1, 3):
        return None, f"images have {images.shape[-1]} channels"
    try:
        return model.explain(images), ""
    except UserError as error:
        return None, str(error)


def _smaller(image: np.ndarray) -> np.ndarray:
    drawn = Image.fromarray(image)
    drawn.thumbnail((128, 128))
    return np.asarray(drawn)


def _rows(images: np.ndarray, columns: int) -> list[list[np.ndarray]]:
    return [list(images[start : start + columns]) for start in range(0, len(images), columns)]


def _sheet(rows: Any) -> bytes:
    target = io.BytesIO()
    draw(rows).save(target, format="PNG", optimize=True)
    return target.getvalue()
