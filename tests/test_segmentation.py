"""Masks: what is read and refused, that they move with their images, losses and metrics, and the commands on a run."""

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score

from jaxcnn.augment import make_augment_masks
from jaxcnn.config import AugmentConfig, CheckpointConfig, Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from jaxcnn.data import scenes as scenes_lib
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.models import SEGMENTERS
from jaxcnn.models.unet import UNet
from jaxcnn.results.finished import load
from jaxcnn.results.general import evaluate_run
from jaxcnn.results.segmented import Segmenter
from jaxcnn.tasks.metric import Metrics
from jaxcnn.tasks.segmentation import average_mirrored
from jaxcnn.tasks.segmentation.losses import VOID, make_loss
from jaxcnn.tasks.segmentation.metrics import iou_names, metrics_for
from jaxcnn.tasks.segmentation.records import fit_labels, fit_whole
from jaxcnn.tasks.segmentation.source import open_source
from jaxcnn.training.build import build
from tests.commands import run_here
from tests.runs import arrays, assert_same_arrays, changed, train
from tests.test_loop import stop_at  # noqa: F401


class TinyMap(nn.Module):
    """Two convolutions and a head for each pixel: compiled in a second."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for number, features in enumerate((8, 8), start=1):
            x = nn.relu(nn.Conv(features, (3, 3), dtype=self.dtype, name=f"conv{number}")(x))
        return nn.Dense(self.num_classes, name="head")(x)


@pytest.fixture(autouse=True, scope="module")
def tiny_map() -> Iterator[None]:
    with mock.patch.dict(SEGMENTERS, tiny_map=TinyMap):
        yield


COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 128, 64)], np.uint8)


def mask_config(name: str, **changes: Any) -> Config:
    """A tiny network, 6 steps of 8 images; a key `a__b` sets config.a.b."""
    config = Config(
        task="segmentation", num_steps=6, batch_size=8, eval_every_epochs=1, log_every_steps=2,
        data=DataConfig(name=name), model=ModelConfig(name="tiny_map"),
        loss=LossConfig(name="dice_cross_entropy"), augment=AugmentConfig(flip=True, rotation=10),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
        checkpoint=CheckpointConfig(every_steps=2, keep_last=8), tensorboard=False, compilation_cache=False,
    )  # fmt: skip
    return changed(config, changes)


def squares(count: int, side: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, S, S, 3] of a bright and a dark square on grey, and masks: 0, 1 bright, 2 dark."""
    draw = np.random.default_rng(seed)
    images = draw.integers(100, 130, (count, side, side, 3)).astype(np.uint8)
    masks = np.zeros((count, side, side), np.uint8)
    for number in range(count):
        for label, level in ((1, 230), (2, 10)):
            top, left = draw.integers(0, side - 6, 2)
            place = number, slice(top, top + 6), slice(left, left + 6)
            images[place], masks[place] = level, label
    return images, masks


def as_index(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask)


def as_palette(mask: np.ndarray) -> Image.Image:
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(COLOURS.tobytes())
    return picture


def as_colours(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(COLOURS[mask])


def as_grey_rgb(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(mask[..., None], 3, axis=2))


def write_set(
    root: Path,
    count: int = 12,
    *,
    write: Callable[[np.ndarray], Image.Image] = as_index,
    folder: str = "",
    **options: Any,
) -> str:
    images, masks = squares(count, **options)
    for kind in ("images", "masks"):
        (root / folder / kind).mkdir(parents=True, exist_ok=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        Image.fromarray(image).save(root / folder / "images" / f"{number}.png")
        write(mask).save(root / folder / "masks" / f"{number}.png")
    return f"folder:{root}"


# ---- what is read


@pytest.mark.parametrize("write", [as_index, as_palette, as_colours, as_grey_rgb])
def test_masks_of_every_kind_are_one_set(tmp_path, write):
    if write is as_colours:
        (tmp_path / "classes.txt").write_text("ground 0 0 0\nbright 255,0,0\n# a remark\n0 128 64 dark\n")
    source = open_source(mask_config(write_set(tmp_path, write=write)))
    assert source.shape == (16, 16, 3)
    assert source.class_names == (("ground", "bright", "dark") if write is as_colours else ("0", "1", "2"))
    images, masks = squares(12)
    for split in source.splits.values():
        for record, example in zip(split.indices, split.records.read(split.indices), strict=True):
            number = int(Path(split.records.identifier(record)).stem)
            np.testing.assert_array_equal(example["image"], images[number])
            np.testing.assert_array_equal(example["label"], masks[number])
    assert source.pixels.sum() == len(source.splits["train"]) * 256


def test_layouts_of_splits_are_alike(tmp_path):
    for place, inside in (("one", "{split}/{kind}"), ("two", "{kind}/{split}")):
        for split, count in (("train", 8), ("val", 3), ("test", 4)):
            images, masks = squares(count)
            for kind, arrays_of in (("images", images), ("masks", masks)):
                folder = tmp_path / place / inside.format(split=split, kind=kind)
                folder.mkdir(parents=True)
                ending = "" if kind == "images" else "_mask"
                for number, array in enumerate(arrays_of):
                    Image.fromarray(array).save(folder / f"{number}{ending}.png")
        source = open_source(mask_config(f"folder:{tmp_path / place}"))
        assert {name: len(split) for name, split in source.splits.items()} == {"train": 8, "validation": 3, "test": 4}


def test_two_values_black_and_white_are_two_classes(tmp_path):
    name = write_set(tmp_path, write=lambda mask: Image.fromarray((mask > 0).astype(np.uint8) * 255))
    source = open_source(mask_config(name))
    assert source.class_names == ("background", "foreground")
    labels = source.splits["train"][0]["label"]
    assert set(np.unique(labels)) == {0, 1}


def test_void_and_names_of_the_config(tmp_path):
    name = write_set(tmp_path, write=lambda mask: Image.fromarray(np.where(mask == 2, 7, mask).astype(np.uint8)))
    config = mask_config(name, segmentation__classes=("ground", "bright"), segmentation__void=7)
    source = open_source(config)
    records, (_, masks) = source.splits["train"].records, squares(12)
    for record, example in enumerate(records.read(np.arange(12))):
        mask = masks[int(Path(records.identifier(record)).stem)]
        np.testing.assert_array_equal(example["label"], np.where(mask == 2, VOID, mask))


def test_images_of_other_sizes_fit_in_whole():
    image, labels = np.full((30, 10, 3), 200, np.uint8), np.ones((30, 10), np.uint8)
    fitted, classes = fit_whole(image, (15, 15)), fit_labels(labels, (15, 15))
    assert (fitted[:, :5] == 200).all()
    assert (fitted[:, 5:] == 0).all()
    assert (classes[:, :5] == 1).all()
    assert (classes[:, 5:] == VOID).all()
    np.testing.assert_array_equal(fit_labels(np.arange(16, dtype=np.uint8).reshape(4, 4), (2, 2)), [[5, 7], [13, 15]])


def no_mask(root: Path) -> None:
    (root / "masks" / "3.png").unlink()


def other_size(root: Path) -> None:
    Image.fromarray(np.zeros((16, 15), np.uint8)).save(root / "masks" / "3.png")


def unknown_colour(root: Path) -> None:
    write_set(root, write=as_colours)
    (root / "classes.txt").write_text("ground 0 0 0\nbright 255 0 0\n")


def new_in_test(root: Path) -> None:
    write_set(root, folder="train")
    write_set(root, 3, folder="test", write=lambda mask: Image.fromarray(mask + np.uint8(1)))


def as_jpeg(root: Path) -> None:
    (root / "masks" / "3.png").unlink()
    Image.fromarray(squares(1)[1][0]).save(root / "masks" / "3.jpg")


def torn(root: Path) -> None:
    file = root / "masks" / "3.png"
    file.write_bytes(file.read_bytes()[:60])


def without_masks(root: Path) -> None:
    (root / "masks").rename(root / "msks")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_mask, "images/3.png has no mask of its name in masks; add it"),
        (lambda root: (root / "images" / "3.png").unlink(), "masks/3.png has no image of its name in images"),
        (other_size, "masks/3.png: it is 15 x 16 pixels, and its image 16 x 16; make them alike"),
        (lambda root: write_set(root, write=as_colours), "masks of colours, and nothing says what they mean; write a"),
        (unknown_colour, "pixels of the colour 0 128 64, which is no class's; there are the colour 0 0 0 (ground)"),
        (new_in_test, "pixels of 3, which is no class's; there are 0 (0), 1 (1), 2 (2); mend the mask"),
        (as_jpeg, "masks/3.jpg: JPEG may change values; save it as PNG"),
        (torn, "masks/3.png cannot be read (image file is truncated)"),
        (without_masks, "has no folder 'masks'; did you mean 'msks'?"),
        (lambda root: (root / "classes.txt").write_text("1 2 3\n"), "line 1: '1 2 3' has no name"),
        (lambda root: (root / "classes.txt").write_text("a\na\nb\n"), "two classes have one name"),
        (lambda root: (root / "classes.txt").write_text("a\n"), "only one class, 'a': there is nothing to tell apart"),
    ],
)  # fmt: skip
def test_a_bad_folder_is_one_line(tmp_path, spoil, message):
    if spoil is new_in_test:
        spoil(tmp_path)
        name = f"folder:{tmp_path}"
    else:
        name = write_set(tmp_path)
        spoil(tmp_path)
    with pytest.raises((UserError, RunError)) as error:
        open_source(mask_config(name))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_list_leaves_out_may_be_damaged(tmp_path):
    """And with data.damaged=skip training goes on without it, in evaluation it is masked."""
    name = write_set(tmp_path / "set", 24)
    torn(tmp_path / "set")
    Image.fromarray(np.full((16, 16), 9, np.uint8)).save(tmp_path / "set" / "masks" / "5.png")  # no class's
    (tmp_path / "out.txt").write_text("images/3.png\nimages/5.png\n")
    source = open_source(mask_config(name, data__exclude=str(tmp_path / "out.txt"), segmentation__classes=tuple("abc")))
    assert sum(map(len, source.splits.values())) == 22
    assert source.num_excluded == 2
    skipping = mask_config(name, data__damaged="skip", segmentation__classes=tuple("abc"), num_devices=1)
    source = open_source(skipping)
    assert sum(map(len, source.splits.values())) == 24
    assert source.pixels.sum() % 256 == 0
    train(skipping, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_palettes_and_greys_are_colours_where_others_are(tmp_path):
    name = write_set(tmp_path, write=as_colours)
    _, masks = squares(12)
    as_palette(masks[4]).save(tmp_path / "masks" / "4.png")
    as_colours(np.zeros((16, 16), np.uint8)).save(tmp_path / "masks" / "5.png")  # black alone, no colour
    (tmp_path / "classes.txt").write_text("ground 0 0 0\nbright 255 0 0\ndark 0 128 64\n")
    source = open_source(mask_config(name))
    found = {}
    for split in source.splits.values():
        for record, example in zip(split.indices, split.records.read(split.indices), strict=True):
            found[Path(split.records.identifier(record)).stem] = example["label"]
    np.testing.assert_array_equal(found["4"], masks[4])
    assert not found["5"].any()


def save_npz(file: Path, **arrays_of: Any) -> str:
    np.savez(file, **arrays_of)
    return f"npz:{file}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda images, masks: (images, masks[:, :8]),
            "expected masks of whole numbers, (12, 16, 16), a value a class",
        ),
        (lambda images, masks: (images, masks / 2), "masks is float64"),
        (lambda images, masks: (images, masks.astype(int) - 1), "has values from -1 to 1; expected 0 to 65,535"),
        (lambda images, masks: (images, masks * 0), "only one class, '0': there is nothing to tell apart"),
        (lambda images, masks: (images[:5], masks), "5 images, but masks has 12"),
    ],
)
def test_bad_arrays_are_one_line(tmp_path, change, message):
    images, masks = change(*squares(12))
    with pytest.raises(UserError) as error:
        open_source(mask_config(save_npz(tmp_path / "set.npz", images=images, masks=masks)))
    assert message in str(error.value)


def test_arrays_are_read_as_files_are(tmp_path):
    images, masks = squares(12)
    name = save_npz(tmp_path / "set.npz", images=images, masks=masks, class_names=np.array(["ground", "a", "b"]))
    source = open_source(mask_config(name, data__image_size=20))
    assert source.class_names == ("ground", "a", "b")
    example = source.splits["train"][0]
    assert example["image"].shape == (20, 20, 3)
    assert set(np.unique(example["label"])) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "digits"}, "is no known set of images and masks: one of folder:PATH, npz:PATH, scenes:NAME"),
        ({"model__name": "cnn"}, "cnn is not for task=segmentation; choose one of: unet"),
        ({"loss__name": "mse"}, "mse is for classes and numbers, and masks are of pixels; set loss.name=cross"),
        ({"loss__name": "dice", "loss__class_weights": "balanced"}, "weigh pixels, and loss.name=dice sees classes"),
        ({"augment__mixup": 0.2}, "augment.mixup has no meaning for masks here; set it to 0"),
        ({"augment__trivial_augment": True}, "augment.trivial_augment has no meaning for masks"),
        ({"eval_tta": "shifts"}, "eval_tta=shifts is for classes of images; for masks set it to none or flip"),
        ({"data__image_size": 8, "model__name": "unet"}, "unet needs images of at least 16x16 pixels and got 8x8"),
        ({"loss__class_weight_values": (1.0, 2.0), "loss__name": "cross_entropy"}, "has 2 weights, but there are 3"),
        ({"checkpoint__best_metric": "accuracy"}, "best_metric=accuracy is not measured with 3 classes"),
        ({"data__mean": (0.5,), "data__std": (0.5,)}, "data.mean and data.std need 3 values each"),
    ],
)  # fmt: skip
def test_what_does_not_suit_masks_is_one_line(tmp_path, changes, message):
    images, masks = squares(12)
    name = save_npz(tmp_path / "set.npz", images=images, masks=masks)
    with pytest.raises(UserError) as error:
        build(mask_config(name, **changes))
    assert message in str(error.value)


def test_networks_of_pixels_are_refused_elsewhere():
    with pytest.raises(UserError, match=r"model\.name=unet is for task=segmentation; choose another"):
        build(Config(model=ModelConfig(name="unet")))


# ---- scenes


def test_scenes_are_a_function_of_their_set(monkeypatch):
    monkeypatch.setattr(scenes_lib, "MOST_SCENES", 20)
    data = DataConfig(name="scenes:digits")
    names, scenes, fingerprint = scenes_lib.make_scenes(data, "digits")
    _, again, same = scenes_lib.make_scenes(data, "digits")
    assert names == tuple("0123456789")
    assert fingerprint == same
    np.testing.assert_array_equal(scenes["train"].images, again["train"].images)
    masks = scenes["train"].masks
    assert set(np.unique(masks)) <= set(range(11))
    shares = (masks > 0).mean(axis=(1, 2))
    assert 0.01 < shares.min() < shares.max() < 0.7
    edges = ((masks > 0) != (np.roll(masks, 1, axis=2) > 0))[:, :, 1:]  # where figures begin, levels jump
    jumps = np.abs(np.diff(scenes["train"].images.astype(int), axis=2)).mean(axis=3)
    assert jumps[edges].mean() > 1.5 * jumps.mean()


# ---- geometry


@pytest.mark.parametrize(
    "augment",
    [
        {"flip": True},
        {"crop_padding": 4},
        {"random_resized_crop": True, "crop_area": (0.3, 1.0)},
        {"rotation": 40.0, "shift": 0.2, "zoom": 0.3, "shear": 20.0},
        {"rotation": 40.0, "shift": 0.2, "fill": "reflect"},
        {"flip": True, "crop_padding": 3, "random_resized_crop": True, "rotation": 20.0, "brightness": 0.3},
    ],
    ids=str,
)
def test_masks_move_with_their_images(augment):
    """Where an image of one level a class is no mixture of neighbours, its level tells the class that the mask has."""
    masks = np.stack([np.kron(np.random.default_rng(n).integers(0, 3, (4, 4)), np.ones((8, 8))) for n in range(16)])
    masks = masks.astype(np.uint8)
    levels = np.array([60, 120, 240], np.uint8)
    geometry = {name: value for name, value in augment.items() if name != "brightness"}
    move = partial(make_augment_masks, mean=(0.0,), std=(1.0,), image_shape=(32, 32, 1), void=VOID)
    keys = jax.random.split(jax.random.key(1), 16)
    images, moved = jax.jit(move(AugmentConfig(**geometry)))(keys, levels[masks][..., None], masks)
    _, of_all = jax.jit(move(AugmentConfig(**augment)))(keys, levels[masks][..., None], masks)
    np.testing.assert_array_equal(moved, of_all)  # colours move nothing
    shown = np.rint(np.asarray(images)[..., 0] * 255).astype(int)
    moved = np.asarray(moved)
    assert moved.dtype == np.uint8
    pure = np.isin(shown, levels)
    expected = np.searchsorted(levels, shown)
    agree = (expected == moved)[pure & (moved != VOID)]
    assert pure.mean() > 0.5
    assert agree.mean() > 0.99  # a mixture may have a class's level by chance
    assert (moved != masks).any()
    outside = shown == 0
    assert (moved == VOID)[outside].mean() > 0.95 if outside.any() else not (moved == VOID).any()
    for image, mask in zip(shown, moved, strict=True):  # void lies outside only
        assert not (np.isin(image, levels) & (mask == VOID)).mean() > 0.02


# ---- losses and metrics


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice", "jaccard", "tversky", "dice_cross_entropy"])
def test_void_counts_nowhere(name):
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(3, 5, 4, 3)).astype(np.float32)
    labels = draw.integers(0, 3, (3, 5, 4)).astype(np.uint8)
    labels[0, :2] = labels[1] = VOID
    loss = make_loss(LossConfig(name=name, label_smoothing=0.1 if "cross" in name else 0.0))
    values, gradients = jax.value_and_grad(lambda x: loss(x, labels).sum())(jnp.asarray(logits))
    assert np.isfinite(values)
    assert (np.asarray(gradients)[labels == VOID] == 0).all()
    assert (np.asarray(gradients)[labels != VOID] != 0).any()
    assert float(loss(logits, labels)[1]) == 0
    alone = loss(logits[:1, 2:], labels[:1, 2:])  # as if void pixels were not there
    np.testing.assert_allclose(loss(logits, labels)[0], alone[0], rtol=1e-5)


def test_losses_of_regions_by_hand():
    """Two pixels, two classes, probabilities 3/4 and 1/4 for the first, all the other way for the second."""
    logits = np.log(np.array([[[[0.75, 0.25], [0.25, 0.75]]]], np.float32))
    labels = np.array([[[0, 0]]], np.uint8)
    both, said, true = np.array([1.0, 0]), np.array([1.0, 1.0]), np.array([2.0, 0])
    for name, a, b in (("dice", 0.5, 0.5), ("jaccard", 1, 1), ("tversky", 0.3, 0.7)):
        expected = 1 - np.mean((both + 1) / (both + a * (said - both) + b * (true - both) + 1))
        (value,) = make_loss(LossConfig(name=name))(logits, labels)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    weights = np.array([2.0, 5.0], np.float32)
    plain, weighed = (make_loss(LossConfig(), each)(logits, labels)[0] for each in (None, weights))
    np.testing.assert_allclose(weighed, 2 * plain, rtol=1e-6)


def test_metrics_are_scikit_learns():
    draw = np.random.default_rng(3)
    logits = draw.normal(size=(6, 9, 8, 5)).astype(np.float32)
    logits[..., 4] = -9  # never said, and never true: it counts nowhere
    labels = draw.integers(0, 4, (6, 9, 8)).astype(np.uint8)
    labels[draw.random(labels.shape) < 0.1] = VOID
    metrics = Metrics(metrics_for(["a", "b b", "b-b", "d", "é"]))
    assert iou_names(["a", "b b", "b-b", "d", "é"]) == ["iou_a", "iou_b_b", "iou_b_b_2", "iou_d", "iou_4"]
    totals = metrics.empty()
    for part in (slice(0, 4), slice(4, 6)):
        values = metrics.of_examples(logits[part], labels[part], jnp.zeros(len(logits[part])))
        totals = totals.merge(metrics.sums(values, jnp.ones(len(logits[part]), bool)))
    found = {name: float(value) for name, value in totals.compute().items()}
    valid = labels != VOID
    true, said = labels[valid], logits.argmax(-1)[valid]
    assert found["pixel_accuracy"] == pytest.approx((true == said).mean(), rel=1e-5)
    assert found["mean_iou"] == pytest.approx(jaccard_score(true, said, average="macro"), rel=1e-5)
    assert found["mean_dice"] == pytest.approx(f1_score(true, said, average="macro"), rel=1e-5)
    of_each = jaccard_score(true, said, average=None)
    assert [found[f"iou_{name}"] for name in ("a", "b_b", "b_b_2", "d")] == pytest.approx(of_each, rel=1e-5)
    assert np.isnan(found["iou_4"])


# ---- the network


def test_unet_has_the_papers_parameters():
    """31,037,698 with batch norm, three channels and two classes, as of the most used PyTorch implementation."""
    model = UNet(num_classes=2)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 31_037_698


def test_unet_gives_a_map_of_any_images_size():
    model = UNet(num_classes=3, width=0.03)
    images = np.random.default_rng(0).normal(size=(2, 21, 34, 1)).astype(np.float32)
    logits, _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
    assert logits.shape == (2, 21, 34, 3)


# ---- runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run by the command, on images as large as they are."""
    folder = tmp_path_factory.mktemp("segmentation")
    images, masks = squares(48, side=20)
    masks[:, :2, :2] = VOID
    name = save_npz(folder / "set.npz", images=images, masks=masks)
    (folder / "experiment.py").write_text(
        "from tests.test_segmentation import mask_config\n\n\n"
        f"def get_config():\n    return mask_config({name!r}, num_steps=60, eval_every_epochs=4)\n"
    )
    code, _, errors = run_here(f"--config={folder / 'experiment.py'}", f"--workdir={folder / 'run'}")
    assert code == 0, errors
    return folder / "run"


def test_a_run_learns_and_its_evaluation_says_the_same(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    of_validation = [row for row in rows if row["split"] == "validation"]
    assert max(row["mean_iou"] for row in of_validation) > max(0.4, of_validation[0]["mean_iou"])
    summary = json.loads((trained / "summary.json").read_text())
    evaluation = evaluate_run(load(str(trained)), resamples=50)
    for name in ("loss", "mean_iou", "pixel_accuracy"):
        value = evaluation.scores[name]
        assert value == pytest.approx(summary["splits"]["test"][name], rel=1e-4)
        low, high = evaluation.intervals[name]
        assert value is not None
        assert low <= value <= high
    assert set(evaluation.scores) >= {"iou_0", "iou_1", "iou_2", "mean_accuracy", "mean_dice"}
    counted = np.sum(evaluation.columns["pixels"])
    assert counted == len(evaluation.places) * (20 * 20 - 4)  # void is not counted
    assert np.sum(evaluation.columns["right"]) / counted == pytest.approx(evaluation.scores["pixel_accuracy"], rel=1e-6)


def test_outputs_that_are_not_finite_are_told(trained):
    run = load(str(trained))
    head = jax.tree.map(lambda x: x * np.nan, run.variables["params"]["head"])
    run.variables["params"]["head"] = head
    with pytest.raises(RunError, match="are not finite for 5 of 5 examples of test"):
        evaluate_run(run, resamples=0)


def test_commands_on_a_run(trained, tmp_path):
    code, output, errors = run_here(f"--workdir={trained}", module="evaluate")
    assert code == 0, errors
    assert "iou_2" in output
    with (trained / "predictions.csv").open() as file:
        assert {"identifier", "mean_iou", "iou_1"} <= set(next(csv.reader(file)))
    code, output, errors = run_here("--workdir", trained, module="report.__main__")
    assert code == 0, errors
    page = (trained / "report.html").read_text()
    for words in ("Classes", "95 % interval", "errors of", "mean IoU"):
        assert words in page
    assert (trained / "report" / "masks.png").stat().st_size > 1000
    images, masks = squares(1, side=20, seed=5)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(images[0]).save(tmp_path / "in" / "deep" / "a.jpg", quality=95)
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    outputs = {name: tmp_path / name for name in ("masks", "drawn")}
    command = (f"--workdir={trained}", tmp_path / "in", *(f"--{name}={path}" for name, path in outputs.items()))
    code, output, errors = run_here(*command, f"--csv={tmp_path / 'shares.csv'}", module="predict")
    assert code == 1
    assert "b.png: no image of a known type" in errors
    assert "1 images predicted" in output
    found = np.asarray(Image.open(outputs["masks"] / "deep" / "a.png"))
    assert found.shape == (20, 20)
    assert (found == masks[0]).mean() > 0.6
    assert np.asarray(Image.open(outputs["drawn"] / "deep" / "a.png")).shape == (20, 20, 3)
    (row,) = csv.DictReader((tmp_path / "shares.csv").open())
    assert sum(float(row[name]) for name in "012") == pytest.approx(1)
    assert float(row["1"]) == pytest.approx((found == 1).mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain=x"], "--explain is for classes of images, and the run is of task=segmentation"),
        ([], "no files given; pass those that the run's task reads"),
        (["--masks=m", "--drawn=m", "a.png"], "--masks and --drawn would write the same files"),
        (["--csv=-", "--json=-", "a.png"], "would both write to stdout"),
        (["--masks={}", "{}/a.png"], "holds the images themselves; write to another folder"),
        (["{}/nowhere.png"], "there is no file or folder"),
    ],
)
def test_a_bad_prediction_is_one_line(trained, tmp_path, options, message):
    code, _, errors = run_here(f"--workdir={trained}", *(each.format(tmp_path) for each in options), module="predict")
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1


def test_mirrored_answers_are_mirrored_back(trained):
    run = load(str(trained))
    images = squares(3, side=20, seed=2)[0]
    inputs, _ = run.prepare({"image": images})
    model = partial(run.module.apply, run.variables, train=False)
    plain, mirrored = model(inputs), model(inputs[:, :, ::-1])
    found = average_mirrored(model, inputs, flip=True)
    np.testing.assert_allclose(found, (plain + mirrored[:, :, ::-1]) / 2, atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3


def test_two_images_of_one_name_and_a_network_gone_wrong_are_told(trained, tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(squares(1, side=20)[0][0]).save(tmp_path / name)
    command = (f"--workdir={trained}", tmp_path / "a.png", tmp_path / "a.jpg", f"--masks={tmp_path / 'masks'}")
    code, output, errors = run_here(*command, module="predict")
    assert code == 1
    assert "a.jpg: another image has been written as a.png" in errors
    assert "1 images predicted" in output
    assert "1 left out" in output
    run = load(str(trained))
    run.variables["params"]["head"]["bias"] = np.full(3, np.inf, np.float32)
    with pytest.raises(ValueError, match="output is not finite"):
        Segmenter(run, 2).probabilities(squares(1, side=20)[0][0])


def test_tiles_are_the_whole_where_it_fits_and_agree_beyond(trained):
    run = load(str(trained))
    segmenter = Segmenter(run, 3)
    images, masks = squares(1, side=50, seed=9)
    own = images[0, :20, :20]
    np.testing.assert_array_equal(segmenter.probabilities(own), segmenter.of_own(own))
    small = segmenter.probabilities(own[:13])
    assert small.shape == (13, 20, 3)
    found = segmenter.probabilities(images[0])
    assert found.shape == (50, 50, 3)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert (found.argmax(axis=-1) == masks[0]).mean() > 0.6
    flat = np.full((50, 45, 3), 115, np.uint8)  # whose tiles are all alike: blending leaves no seam
    of_tile = segmenter.of_own(flat[:20, :20])
    inside = segmenter.probabilities(flat)
    assert inside.min() >= of_tile.min() - 1e-6
    assert inside.max() <= of_tile.max() + 1e-6


def test_same_bits_stopped_or_not(tmp_path, stop_at):  # noqa: F811
    config = mask_config(write_set(tmp_path / "set", 24), num_devices=1, log_every_steps=1)
    train(config, tmp_path / "whole")
    stop_at(4)
    with pytest.raises(Preempted):
        train(config, tmp_path / "killed")
    train(config, tmp_path / "killed")
    whole = arrays(tmp_path / "whole", config)
    assert_same_arrays(whole, arrays(tmp_path / "killed", config))
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_streamed_and_on_eight_devices_it_is_the_same(tmp_path):
    """By jit and by pmap."""
    make, metrics = partial(mask_config, write_set(tmp_path / "set", 24), log_every_steps=1), "metrics.jsonl"
    train(make(num_devices=1), tmp_path / "whole")
    for place, other in (
        ("streamed", make(num_devices=1, data__resident=False)),
        ("jit", make(num_devices=8)),
        ("pmap", make(num_devices=8, parallel="pmap")),
    ):
        train(other, tmp_path / place)
        rows = [[json.loads(line) for line in (tmp_path / each / metrics).open()] for each in ("whole", place)]
        for one, another in zip(*rows, strict=True):
            assert one["step"] == another["step"]
            assert one["loss"] == pytest.approx(another["loss"], rel=1e-4)
            assert one["mean_iou"] == pytest.approx(another["mean_iou"], rel=2e-2)
