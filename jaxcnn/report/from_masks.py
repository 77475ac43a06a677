"""Sections about a run of segmentation: scores, IoU of each class, and images with what is and what was said."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from jaxcnn.data.sheet import Row, spread
from jaxcnn.report.evaluated import Evaluated
from jaxcnn.report.files import RunFiles, shown_name
from jaxcnn.report.page import Cell, Section, escape, figure, grid, paragraph, picture, sheet, table
from jaxcnn.results.segmented import Segmenter, overlay
from jaxcnn.run.log import number_in_words
from jaxcnn.tasks.segmentation.losses import VOID
from jaxcnn.tasks.segmentation.metrics import iou_names
from jaxcnn.training.feed import Progress

WORST, OTHERS = 6, 4  # images that are drawn
RIGHT, WRONG, NOTHING = (60, 130, 200), (220, 90, 30), (40, 40, 40)  # pixels, in the drawing of errors


def sections(run: RunFiles, values: Any, progress: Progress) -> dict[str, Callable[[], Section]]:
    """What makes each section, by its title."""
    made = _Sections(run, values, progress)
    return {"Scores": made.scores, "Classes": made.classes, "Images": made.images}


class _Sections(Evaluated):
    """A run of masks."""

    resamples = 1000

    @cached_property
    def segmenter(self) -> Segmenter:
        return Segmenter(self.finished, min(8, self.finished.batch_size))

    @cached_property
    def names(self) -> tuple[str, ...]:
        return self.segmenter.classes.names

    def scores(self) -> Section:
        """The scores of the split, without those of single classes."""
        body = paragraph(escape(self.of_what)) + self.scores_table(without=iou_names(self.names))
        return Section("Scores", body + paragraph("Means are over classes; pixels are counted over the whole split."))

    def classes(self) -> Section:
        """IoU of each class with its interval, and how many images of the split have it."""
        evaluation = self.evaluation
        rows: list[list[str | Cell]] = []
        for name, score in zip(self.names, iou_names(self.names), strict=True):
            value, bounds = evaluation.scores[score], evaluation.intervals.get(score)
            count = sum(1 for cell in evaluation.columns[score] if cell != "")
            rows.append(
                [
                    name,
                    Cell("—" if value is None else number_in_words(value), value=value, share=value),
                    "" if bounds is None else " – ".join(map(number_in_words, bounds)),
                    Cell(f"{count:,}", value=count),
                ]
            )
        heads = ["class", "IoU", "95 % interval", "images that have it, or are said to"]
        return Section("Classes", paragraph(escape(self.of_what)) + table(heads, rows, label="classes", sortable=True))

    def images(self) -> Section:
        """The worst images by their mean IoU, then others evenly from the split: image, truth, said, errors."""
        columns = self.evaluation.columns
        scores = np.array([float(cell) if cell else np.nan for cell in columns["mean_iou"]])
        worst = np.argsort(np.where(np.isnan(scores), np.inf, scores), kind="stable")[:WORST]
        chosen = [*worst, *(each for each in spread(len(scores), OTHERS) if each not in worst)]
        body = paragraph(
            f"The {len(worst)} worst by the mean IoU of their own classes, then others. Of each the image, its mask, "
            f"what was said, and where that is right (blue), wrong (orange) or counts nowhere (dark). "
            f"{escape(self.of_what)}"
        )
        rows = []
        for number in chosen:
            name, images = self._drawn(int(number))
            caption = f"{name}: mean IoU {'—' if np.isnan(scores[number]) else number_in_words(scores[number])}"
            kinds = ("image", "mask", "said", "errors")
            cells = [figure(picture(each, f"{kind} of {name}"), kind) for each, kind in zip(images, kinds, strict=True)]
            body += paragraph(escape(caption)) + grid(cells)
            rows.append(Row(name, images))
        return Section("Images", body, {"masks.png": sheet(rows)})

    def _drawn(self, number: int) -> tuple[str, list[np.ndarray]]:
        """The name of an example, and its image, mask, prediction and errors, uint8 [h, w, 3]."""
        evaluation = self.evaluation
        split = evaluation.source.splits[evaluation.split]
        example = split.records[int(split.indices[evaluation.places[number]])]
        image, truth = example["image"], example["label"]
        said = self.segmenter.of_own(image).argmax(axis=-1)
        valid = truth != VOID
        errors = np.where(valid[..., None], np.where((said == truth)[..., None], RIGHT, WRONG), NOTHING)
        plain = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image
        mask = overlay(image, np.where(valid, truth, 0), self.segmenter.classes)
        drawn = [
            np.ascontiguousarray(plain),
            mask,
            overlay(image, said, self.segmenter.classes),
            errors.astype(np.uint8),
        ]
        return shown_name(evaluation.identifiers[number]), drawn
