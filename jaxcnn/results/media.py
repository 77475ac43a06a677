"""What TensorBoard shows of a run besides numbers: its graph and hyperparameters when it begins; with
`tensorboard_media` the images that it trains on, and at the end what it made of validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxcnn.augment import make_normalise
from jaxcnn.config import RESUMABLE_FIELDS, flatten
from jaxcnn.data.decoding import fit_image
from jaxcnn.data.sheet import Row, draw
from jaxcnn.layers.features import FEATURES
from jaxcnn.layers.graph import module_graph
from jaxcnn.models.make import params_in_order
from jaxcnn.results.augmented import pixels_of
from jaxcnn.run.log import RunLog
from jaxcnn.tasks.classification.scores import log_odds
from jaxcnn.tasks.metric import AVERAGED, LOSS
from jaxcnn.terminal import shown
from jaxcnn.training.build import Run
from jaxcnn.training.feed import Feed
from jaxcnn.training.step import example_keys
from jaxcnn.training.telemetry import kernels

NUM_INPUTS = 32  # training images shown
NUM_MISTAKES = 24
NUM_FILTERS = 256  # of the first convolution, at most
NUM_CURVES = 20  # classes with a precision-recall curve of their own, at most
NUM_POINTS = 1000  # validation images in the projector, at most
SPRITE = 64  # pixels: side of an image in the projector, at most


class Media:
    """Shows a run in its log's TensorBoard; nothing where there is none."""

    def __init__(self, run: Run, feed: Feed, log: RunLog):
        self._run, self._feed, self._log = run, feed, log
        self._names = [shown(name) for name in run.source.class_names]

    def begin(self, step: int) -> None:
        """Before the first step at `step`; what a run that is resumed has shown before is there already."""
        run, board = self._run, self._log.tensorboard
        if board is None or step:
            return
        state = run.abstract_state()
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        board.graph(module_graph(run.learning.model, variables, run.task.example.shape))
        compared = {name: value for name, value in flatten(run.config).items() if name not in RESUMABLE_FIELDS}
        split = "validation" if "validation" in run.source.splits else "train"
        averaged = run.learning.average is not None and split == "validation"
        names = [
            (AVERAGED if averaged else "") + name for name in (run.learning.selections.best.metric.name, LOSS.name)
        ]
        board.hyperparameters(
            {name: value for name, value in compared.items() if value is not None}, [(split, name) for name in names]
        )
        if run.config.tensorboard_media:
            images, labels = training_inputs(run, self._feed, count=NUM_INPUTS)
            board.image("train", "inputs", 0, _sheet(images, [self._name(label) for label in labels]))

    def end(self, step: int, variables: dict[str, Any]) -> None:
        """After the last step, of the weights that are the run's result."""
        run, board = self._run, self._log.tensorboard
        if board is None or not run.config.tensorboard_media:
            return
        filters = first_filters(run, variables["params"])
        if filters is not None:
            board.image("train", "filters", step, filters)
        if "validation" not in run.source.splits:
            return
        found, names = predictions(run, self._feed, "validation", variables), self._names
        predicted = found.probabilities.argmax(axis=1)
        board.image("validation", "confusion", step, confusion_image(found.classes, predicted, names))

        sureness = found.probabilities.max(axis=1)
        wrong = np.flatnonzero(predicted != found.classes)
        wrong = wrong[np.argsort(-found.log_odds[wrong], kind="stable")][:NUM_MISTAKES]
        if len(wrong):
            words = [f"{names[predicted[i]]} ({sureness[i]:.0%}), is {names[found.classes[i]]}" for i in wrong]
            board.image("validation", "mistakes", step, _sheet(self._images(found.positions[wrong]), words))

        true = np.eye(len(names), dtype=bool)[found.classes]
        board.pr_curve("validation", "precision_recall/all", step, true.ravel(), found.probabilities.ravel())
        for number, name in enumerate(names[:NUM_CURVES]):
            curve = f"precision_recall/{number} {name}" if name != str(number) else f"precision_recall/{name}"
            board.pr_curve("validation", curve, step, true[:, number], found.probabilities[:, number])

        if found.features is not None:
            chosen = np.unique(np.linspace(0, len(predicted) - 1, min(NUM_POINTS, len(predicted))).round().astype(int))
            side = min(SPRITE, max(run.source.image_shape[:2]))
            sprites = [np.asarray(_rgb(image).resize((side, side))) for image in self._images(found.positions[chosen])]
            columns = {
                "class": [names[c] for c in found.classes[chosen]],
                "predicted": [names[p] for p in predicted[chosen]],
                "right": ["yes" if right else "no" for right in (predicted == found.classes)[chosen]],
            }
            board.embedding("pooled", step, found.features[chosen], columns, np.stack(sprites))

    def _name(self, label: np.ndarray) -> str:
        """Of a class; of mixed classes the two largest, with their shares."""
        names = self._names
        if not label.ndim:
            return names[label]
        first, second = np.argsort(-label, kind="stable")[:2]
        if label[second] <= 0.005:
            return names[first]
        return f"{names[first]} {label[first]:.0%}, {names[second]} {label[second]:.0%}"

    def _images(self, positions: np.ndarray) -> list[np.ndarray]:
        """Validation's images at these places, as the run sees them."""
        split = self._run.source.splits["validation"]
        examples = split.records.read(split.indices[positions])
        return [fit_image(example.pop("image"), self._run.source.image_shape) for example in examples]


def training_inputs(run: Run, feed: Feed, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8, labels) of step 0 as the model sees them: augmented and normalised, the latter undone."""
    batch: Any = feed.batch(0)
    key, size = jax.random.key(run.config.seed), run.config.batch_size
    images, labels = jax.jit(run.learning.prepare)(key, example_keys(key, 0, jnp.arange(size)), batch)
    return pixels_of(images[:count], run.facts), np.asarray(labels[:count])


@dataclass(frozen=True)
class Predictions:
    """Of a split's examples that are not damaged, in its order."""

    positions: np.ndarray  # int [n], places in the split
    classes: np.ndarray  # int [n], the true ones
    probabilities: np.ndarray  # float32 [n, classes]
    log_odds: np.ndarray  # float32 [n], of the prediction
    features: np.ndarray | None  # float32 [n, channels], of the tap `pooled`; none: the model has none


def predictions(run: Run, feed: Feed, split: str, variables: dict[str, Any]) -> Predictions:
    """What the model says of a whole split, of the images as they are."""
    normalise, axis_name = make_normalise(run.facts["mean"], run.facts["std"]), run.parallel.axis_name

    def of_batch(variables: Any, data: Any, inputs: Any) -> Any:
        batch = feed.fetch(data, inputs)
        logits, shown = run.learning.model.apply(variables, normalise(batch["image"]), train=False, mutable=[FEATURES])
        label = batch["label"] if batch["label"].ndim == 1 else batch["label"].argmax(axis=1)
        found = {"probabilities": jax.nn.softmax(logits), "log_odds": log_odds(logits).max(axis=1)}
        found |= {"classes": label, "mask": batch["mask"]}
        if "pooled" in shown.get(FEATURES, {}):
            found["features"] = shown[FEATURES]["pooled"].astype(jnp.float32)
        if axis_name is not None:
            found = jax.lax.all_gather(found, axis_name, tiled=True)
        return found

    call, put = run.parallel.compile(of_batch, sharded={2: 0}), run.parallel.replicate(variables)
    batches = [
        run.parallel.unreplicate(call(put, data, inputs))
        for data, inputs in feed.evaluation(split, run.calls.eval_batch_size)
    ]
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    positions = np.flatnonzero(found["mask"])
    return Predictions(
        positions,
        found["classes"][positions],
        found["probabilities"][positions],
        found["log_odds"][positions],
        found["features"][positions] if "features" in found else None,
    )


def first_filters(run: Run, params: Any) -> np.ndarray | None:
    """The kernels of the convolution that sees the image, each scaled to 0..255; none for a model without."""
    top = {name: params[name] for name in params_in_order(run.learning.model, run.task.example)}
    channels = run.source.image_shape[-1]
    for name in top:
        for kernel in kernels(top[name]).values():
            if kernel.ndim == 4 and kernel.shape[2] == channels and kernel.shape[0] > 1:
                filters = np.moveaxis(np.asarray(kernel, np.float32), 3, 0)[:NUM_FILTERS]
                low, high = (f(filters, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
                scaled = np.round(255 * (filters - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
                return _sheet(scaled if channels in (1, 3) else scaled[..., :1], None)
    return None


def confusion_image(classes: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Uint8 RGB: a row a true class, a column a predicted one, blue by its share of the row. Up to 20 in words."""
    size = len(names)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (classes, predicted), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = max(1, min(48, 1200 // size))
    white, blue = np.array([255, 255, 255]), np.array([8, 48, 107])
    colours = np.round(white + shares[..., None] * (blue - white)).astype(np.uint8)
    image = Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1))
    if size > 20:
        return np.asarray(image)
    font = ImageFont.load_default(14)
    short = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
    margin = round(max(font.getlength(name) for name in short)) + 12
    whole = Image.new("RGB", (margin + image.width, margin + image.height), "white")
    whole.paste(image, (margin, margin))
    pen = ImageDraw.Draw(whole)
    for number, name in enumerate(short):
        middle = margin + cell * number + cell // 2
        pen.text((margin - 6, middle), name, fill="black", font=font, anchor="rm")
        upright = Image.new("RGB", (margin - 6, 18), "white")
        ImageDraw.Draw(upright).text((0, 9), name, fill="black", font=font, anchor="lm")
        whole.paste(upright.rotate(90, expand=True), (middle - 9, 0))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            place = margin + cell * column + cell // 2, margin + cell * row + cell // 2
            pen.text(place, f"{count}", fill="white" if shares[row, column] > 0.5 else "black", font=font, anchor="mm")
    return np.asarray(whole)


def _sheet(images: Sequence[np.ndarray] | np.ndarray, words: Sequence[str] | None) -> np.ndarray:
    """Uint8 RGB: the images in rows, about a square, with the words below each."""
    tiles = [draw([Row("", [image if image.shape[2] in (1, 3) else image[..., :1]])]) for image in images]
    font = ImageFont.load_default(12)
    text = max((round(font.getlength(each)) for each in words or ()), default=0)
    width, height = max(tiles[0].width, text + 12), tiles[0].height + (18 if words else 0)
    columns = max(1, int(np.ceil(np.sqrt(len(tiles) * height / width))))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        left, top = number % columns * width, number // columns * height
        sheet.paste(tile, (left + (width - tile.width) // 2, top))
        if words:
            pen.text((left + width // 2, top + height - 9), words[number], fill="black", font=font, anchor="mm")
    return np.asarray(sheet)


def _rgb(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).convert("RGB")
