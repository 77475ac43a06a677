"""ImageNet of ILSVRC 2012, of which published weights are: its 1,000 classes, and how their images were made."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jaxcnn.errors import UserError
from jaxcnn.files import read_text

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of nearly all weights of torchvision and timm
_HALVES = (0.5, 0.5, 0.5)
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
_CROP = 224 / 256  # the side of the centre that is seen, of the shorter side; where _RESIZED says nothing
_RESIZED = {  # torchvision 0.28's presets: the shorter side in pixels
    "inception_v3": 342, "convnext_tiny": 236, "convnext_small": 230, "convnext_base": 232, "convnext_large": 232,
    "vit_l_16": 242, "resnext101_64x4d": 232, "regnet_y_128gf": 224, "efficientnet_b1": 256, "efficientnet_b2": 288,
    "efficientnet_b3": 320, "efficientnet_b4": 384, "efficientnet_b5": 456, "efficientnet_b6": 528,
    "efficientnet_b7": 600,
}  # fmt: skip


class Preprocessing(NamedTuple):
    """What becomes of an image before a network sees it: resized bilinearly, its centre cropped, normalised."""

    resized: int  # the shorter side, in pixels
    size: int  # of the square that is cropped
    mean: tuple[float, ...]  # a channel, of images in 0..1
    std: tuple[float, ...]


def preprocessing(model: str) -> Preprocessing:
    """What the published weights of a model want, by its name in MODELS.

    Torchvision's of its first weights (its bicubic presets are bilinear here); of EfficientNet-Lite that of
    tensorflow/tpu, models/official/efficientnet: (pixel - 127) / 128, and a centre of 7/8 of the shorter side.
    """
    from jaxcnn.models.published import PUBLISHED  # imports JAX

    size = PUBLISHED[model].image_size
    mean, std = MEAN, STD
    if model.startswith("efficientnet_lite"):
        mean, std = _LITE_MEAN, _LITE_STD
    elif model in ("googlenet", "inception_v3"):
        mean, std = _HALVES, _HALVES
    return Preprocessing(_RESIZED.get(model, round(size / _CROP)), size, mean, std)


@cache
def _classes() -> tuple[tuple[str, str], ...]:
    lines = read_text(Path(__file__).parent / "imagenet_classes.txt", limit=1 << 16).splitlines()[1:]
    return tuple((synset, name) for synset, _, name in (line.partition(" ") for line in lines))


def class_names() -> tuple[str, ...]:
    """The names of the 1,000 classes, in the order of published weights' logits; no two are alike."""
    return tuple(name for _, name in _classes())


def synsets() -> tuple[str, ...]:
    """WordNet's numbers of the classes, n01440764 and on, as folders of ImageNet are named; sorted."""
    return tuple(synset for synset, _ in _classes())


def translated(given: Sequence[str]) -> tuple[str, ...]:
    """Names of classes of which each is a synset of ImageNet's; other names as they are."""
    known = dict(_classes())
    return tuple(map(known.__getitem__, given)) if known.keys() >= set(given) else tuple(given)


def names_of(given: Sequence[str]) -> tuple[str, ...]:
    """The names of a set's 1,000 classes, to which a head of ImageNet's is applied as it is.

    ImageNet's, where the set names them by synsets or by numbers alone; else the set's own.

    Raises:
      UserError: the set has ImageNet's classes in another order, so that the head would take one for the other.
    """
    names, numbers = class_names(), tuple(str(number) for number in range(len(_classes())))
    given = tuple(given)
    if given in (synsets(), numbers):
        return names
    for known in (synsets(), names):
        if given != known and sorted(given) == sorted(known):
            first = next(place for place, (ours, theirs) in enumerate(zip(given, known, strict=True)) if ours != theirs)
            raise UserError(
                f"the data have ImageNet's classes in another order than weights of ImageNet: number {first} is "
                f"{given[first]!r}, not {known[first]!r}; set init_head=new, or name their folders by synsets"
            )
    return given
