"""Sections about the network itself, and the images that it learned from; and the order of all that need it."""

from html import escape

import jax
import numpy as np

from jaxcnn.data.sheet import Row
from jaxcnn.errors import UserError
from jaxcnn.report import from_predictions
from jaxcnn.report.files import shown_name
from jaxcnn.report.layers import layers
from jaxcnn.report.opened import Opened
from jaxcnn.report.page import Cell, Section, figure, paragraph, picture, sheet, table, words
from jaxcnn.results import looks
from jaxcnn.results.augmented import AugmentedImages, augmented_images
from jaxcnn.results.explain import overlay
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.training.build import build

LIKELIEST = 5
AUGMENTED_IMAGES, AUGMENTED_VERSIONS = 6, 6


def filters(opened: Opened) -> Section:
    """The first layer's weights."""
    model = opened.model
    first = looks.first_filters(
        model.module, model.variables["params"], model.image_shape, model_name=model.config.model.name
    )
    images = "".join(picture(image, "") for image in first.images)
    shown = f"{len(first.images)} of {first.total}" if len(first.images) < first.total else f"All {first.total}"
    size = f"{first.images.shape[2]} x {first.images.shape[1]}"
    unit = "filters" if first.kind == "convolution" else "units"
    say = (
        f"{shown} {unit} of {first.layer}, the first {first.kind}, {size} pixels, each scaled by its largest weight: "
        "middle grey is 0. Edges, blobs and colours are learned; noise is what training left as it was."
    )
    wide = " wide" if max(first.images.shape[1:3]) <= 12 else ""
    body = figure(f'<div class="maps{wide}" role="img" aria-label="filters">{images}</div>', say)
    rows = [Row("", list(first.images[start : start + 12])) for start in range(0, len(first.images), 12)]
    return Section("Filters", body, {"filters.png": sheet(rows)})


def feature_maps(opened: Opened) -> Section:
    """One image on its way through the stages."""
    from matplotlib import colormaps

    evaluation, model, names = opened.evaluation, opened.model, opened.names
    if not 0 <= opened.image < len(evaluation.labels):
        raise UserError(
            f"--image={opened.image}: the {opened.split} split has images 0 to {len(evaluation.labels) - 1:,}"
        )
    image = looks.images_of(opened.examples, [evaluation.places[opened.image]], image_shape=model.image_shape)[0]
    stages = looks.feature_maps(model, image)
    probabilities = evaluation.probabilities[opened.image]
    likeliest = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
    label = int(evaluation.labels[opened.image])
    said = ", ".join(f"{words(names[each])} {probabilities[each]:.1%}" for each in likeliest)
    heats, _ = looks.heat_maps(model, image[None])
    pair = picture(image, f"the image, {names[label]}")
    if heats is not None:
        pair += picture(overlay(image, heats[0]), "where it looked")
    identifier = words(shown_name(evaluation.identifiers[opened.image]))
    body = (
        f'<div class="pictures"><div><div class="pair">{pair}</div></div></div>'
        f'<p class="note">Image {opened.image:,} of {opened.split}, {identifier}: <b>{words(names[label])}</b>. '
        f"It said {said}. (Another: --image N.)</p>"
    )
    rows = []
    for stage in stages:
        coloured = (255 * colormaps["magma"](stage.maps)[..., :3]).round().astype(np.uint8)
        height, width = stage.maps.shape[1:]
        count = f"all {stage.channels} channels"
        if len(stage.maps) < stage.channels:
            count = f"the {len(stage.maps)} of {stage.channels} channels that answer most"
        maps = "".join(picture(each, "") for each in coloured)
        body += f"<h4>{words(stage.name)} <span class='soft'>{width} x {height}, {count}</span></h4>"
        body += f'<div class="maps" role="img" aria-label="feature maps of {escape(stage.name)}">{maps}</div>'
        rows.append(Row(stage.name, list(coloured)))
    say = "Each map from its own lowest value (dark) to its highest (light); the stages in their order."
    body += paragraph(say, css="note soft")
    return Section("Feature maps", body, {"feature_maps.png": sheet(rows)})


def model_table(opened: Opened) -> Section:
    """Layers with their parameters, costs and times."""
    model = opened.model
    batch = 8 if max(model.image_shape[:2]) > 64 else 32
    parts, whole = layers(model.module, model.variables, model.image_shape, batch_size=batch)
    measures = ("num_params", "multiply_adds", "seconds")
    most = {name: max((getattr(each, name) for each in parts), default=0) or 1 for name in measures}
    rows: list[list[str | Cell]] = []
    for each in [*(each for each in parts if each.num_params or each.multiply_adds), whole]:
        total = each is whole
        row: list[str | Cell] = [
            f"{model.config.model.name}, whole" if total else each.name,
            each.kind,
            " x ".join(map(str, each.output)),
        ]
        shown = f"{each.num_params:,}", f"{2 * each.multiply_adds / 1e6:,.4g}", f"{1000 * each.seconds:.2f}"
        for name, text in zip(measures, shown, strict=True):
            value = getattr(each, name)
            row.append(Cell(text, value, share=None if total else value / most[name]))
        rows.append(row)
    kind = jax.devices()[0].device_kind
    shape = " x ".join(map(str, model.image_shape))
    say = (
        f"Layers with parameters as the model names them, for images of {shape}. MFLOPs an image: two a multiply-add, "
        f"of convolutions and matrix products. Milliseconds: of {batch} images in evaluation on one {kind}, each layer "
        "compiled and run alone, median; the whole is measured, not summed: what stands between layers, and what the "
        "compiler makes of them together, is in it."
    )
    rest = whole.num_params - sum(each.num_params for each in parts)
    if rest:
        say += f" {rest:,} parameters are in no layer that evaluation calls: the model's own, or of auxiliary heads."
    columns = ["layer", "kind", "output", "parameters", "MFLOPs", "ms"]
    body = table(columns, rows, caption=f"Layers of {model.config.model.name}", names=3)
    return Section("Layers", body + paragraph(say, css="note soft"))


def augmentation(opened: Opened) -> Section:
    """Training images as the model met them."""
    saved = opened.run.saved["data"]
    run, feed = build(
        opened.config,
        progress=opened.progress,
        facts=saved,
        kept_splits=workdir_lib.read_splits(opened.run.workdir),
    )
    try:
        workdir_lib.check_data(opened.run.workdir, saved, run.data_facts())
        count = min(AUGMENTED_IMAGES, opened.config.batch_size)
        shown: AugmentedImages = augmented_images(run, feed, num_images=count, num_versions=AUGMENTED_VERSIONS)
    finally:
        feed.close()
    columns = f"grid-template-columns:1fr 2% repeat({AUGMENTED_VERSIONS},1fr)"
    heads = '<span>stored</span><i></i><span class="rest">as trained on</span>'
    strips = f'<div class="strip soft" style="{columns}">{heads}</div>'
    rows = []
    for original, versions, label in zip(shown.originals, shown.versions, shown.labels, strict=True):
        name = opened.names[int(np.argmax(label)) if np.ndim(label) else int(label)]
        drawn = "".join(picture(image, f"{name}, augmented") for image in versions)
        strips += f'<div class="strip" style="{columns}">{picture(original, f"{name}, as stored")}<i></i>{drawn}</div>'
        rows.append(Row(name, [original, *versions]))
    say = (
        f"The first {len(rows)} images of the first training batch: as stored, then as the first step saw them, then "
        "as other steps would have: the whole of augmentation, with normalising undone."
    )
    body = figure(f'<div class="one">{strips}</div>', say)
    return Section("Augmentation", body, {"augmentation.png": sheet(rows)})


SECTIONS = {
    "Scores": from_predictions.scores,
    "Confusion": from_predictions.confusions,
    "Calibration": from_predictions.calibration,
    "Mistakes": from_predictions.mistakes,
    "Embedding": from_predictions.embedding,
    "Filters": filters,
    "Feature maps": feature_maps,
    "Layers": model_table,
    "Augmentation": augmentation,
}
