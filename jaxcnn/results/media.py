"""Pictures of a run for TensorBoard: its graph and hyperparameters when it begins; with `tensorboard_media` the images
that it trains on, and at the end what it made of validation.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxcnn.config import RESUMABLE_FIELDS, flatten
from jaxcnn.data.sheet import Row, draw, spread
from jaxcnn.errors import UserError
from jaxcnn.hosts import job
from jaxcnn.layers.graph import module_graph
from jaxcnn.results.augmented import pixels_of
from jaxcnn.results.looks import PredictionsWithFeatures, first_filters, images_of, predict_with_features
from jaxcnn.results.measure import Predictions
from jaxcnn.run.log import RunLog
from jaxcnn.run.tensorboard import TensorBoard
from jaxcnn.tasks.classification.scores import confusion_matrix
from jaxcnn.tasks.metric import AVERAGED, LOSS
from jaxcnn.terminal import shown
from jaxcnn.training.build import Run
from jaxcnn.training.feed import Feed
from jaxcnn.training.step import example_keys

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
        board.graph(module_graph(run.learning.model, variables, run.task.example))
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
        self._show_filters(step, variables["params"])
        if "validation" not in run.source.splits or job.number() > 1:  # whose processes would all have to predict
            return
        predictions = predict_with_features(run, self._feed, "validation", variables)
        self._show_confusion(step, predictions)
        self._show_mistakes(step, predictions)
        self._show_curves(step, predictions)
        if predictions.features is not None:
            self._show_features(step, predictions)

    def _show_filters(self, step: int, params: Any) -> None:
        """The first convolution's kernels; nothing for a model without."""
        run, board = self._run, self._board
        try:
            filters = first_filters(
                run.learning.model, params, run.source.image_shape, model_name=run.config.model.name, most=NUM_FILTERS
            )
        except UserError:
            return
        if filters.kind == "convolution":
            board.image("train", "filters", step, _sheet(filters.images, None))

    def _show_confusion(self, step: int, predictions: Predictions) -> None:
        predicted, labels = jnp.asarray(predictions.predicted), jnp.asarray(predictions.labels)
        matrix = confusion_matrix(predicted, labels, jnp.ones(len(labels), bool), num_classes=len(self._names))
        self._board.image("validation", "confusion", step, confusion_image(np.asarray(matrix), self._names))

    def _show_mistakes(self, step: int, predictions: Predictions) -> None:
        names, predicted, labels = self._names, predictions.predicted, predictions.labels
        confidences = predictions.probabilities.max(axis=1)
        wrong = predictions.surest_mistakes(NUM_MISTAKES)
        if len(wrong):
            words = [f"{names[predicted[i]]} ({confidences[i]:.0%}), is {names[labels[i]]}" for i in wrong]
            sheet = _sheet(self._images(predictions.places[wrong]), words)
            self._board.image("validation", "mistakes", step, sheet)

    def _show_curves(self, step: int, predictions: Predictions) -> None:
        """Precision over recall, of all classes together and of the first ones alone."""
        names, board, probabilities = self._names, self._board, predictions.probabilities
        true = np.eye(len(names), dtype=bool)[predictions.labels]
        board.pr_curve("validation", "precision_recall/all", step, true.ravel(), probabilities.ravel())
        for number, name in enumerate(names[:NUM_CURVES]):
            curve = f"precision_recall/{number} {name}" if name != str(number) else f"precision_recall/{name}"
            board.pr_curve("validation", curve, step, true[:, number], probabilities[:, number])

    def _show_features(self, step: int, predictions: PredictionsWithFeatures) -> None:
        """The features that the head sees, in the projector, with the images."""
        names, predicted, labels = self._names, predictions.predicted, predictions.labels
        assert predictions.features is not None
        chosen = spread(len(labels), NUM_POINTS)
        side = min(SPRITE, max(self._run.source.image_shape[:2]))
        images = self._images(predictions.places[chosen])
        sprites = [np.asarray(_rgb(image).resize((side, side))) for image in images]
        columns = {
            "class": [names[label] for label in labels[chosen]],
            "predicted": [names[prediction] for prediction in predicted[chosen]],
            "right": ["yes" if right else "no" for right in (predicted == labels)[chosen]],
        }
        self._board.embedding("pooled", step, predictions.features[chosen], columns, np.stack(sprites))

    @property
    def _board(self) -> TensorBoard:
        board = self._log.tensorboard
        assert board is not None
        return board

    def _name(self, label: np.ndarray) -> str:
        """The name of a class; of mixed classes the two largest, with their shares."""
        names = self._names
        if not label.ndim:
            return names[label]
        first, second = np.argsort(-label, kind="stable")[:2]
        if label[second] <= 0.005:
            return names[first]
        return f"{names[first]} {label[first]:.0%}, {names[second]} {label[second]:.0%}"

    def _images(self, places: np.ndarray) -> np.ndarray:
        """Validation's images at these places, as the run sees them, uint8 [n, H, W, C]."""
        source = self._run.source
        return images_of(source.splits["validation"], places, image_shape=source.image_shape)


def training_inputs(run: Run, feed: Feed, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 and labels of step 0 as the model sees them: augmented and normalised, the latter undone."""
    batch: Any = feed.batch(0)
    key, size = jax.random.key(run.config.seed), run.config.batch_size
    images, labels = jax.jit(run.learning.prepare)(key, example_keys(key, 0, jnp.arange(size)), batch)
    return pixels_of(images[:count], run.facts), np.asarray(labels[:count])


def confusion_image(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A confusion matrix int [K, K] as uint8 RGB: blue by its share of the row. Up to 20 classes in words.

    report.html draws its own with matplotlib, which takes a moment to import, and training never wants it.
    """
    size = len(names)
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
    """A sheet, uint8 RGB: the images in rows, about a square, with the words below each."""
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
