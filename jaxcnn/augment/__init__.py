"""Augmentation on the device, inside the compiled step; and the views over which a prediction may be averaged.

pipeline.py puts the pieces in their order; each piece is a pure function beside its siblings: geometry, boxes, colour,
policies, mixing. None knows the config.
"""

from jaxcnn.augment.boxes import cutout, random_erasing, random_resized_crop
from jaxcnn.augment.geometry import affine, alternating_mirror, flip, mirrored, pad_and_crop
from jaxcnn.augment.mixing import mix
from jaxcnn.augment.pipeline import Augment, check_augment, make_augment, make_augment_masks
from jaxcnn.augment.policies import randaugment, trivial_augment
from jaxcnn.augment.views import VIEWS, Normalise, average_views, make_normalise
from jaxcnn.config import AugmentConfig

__all__ = [
    "VIEWS", "Augment", "AugmentConfig", "Normalise", "affine", "alternating_mirror", "average_views", "check_augment",
    "cutout", "flip", "make_augment", "make_augment_masks", "make_normalise", "mirrored", "mix", "pad_and_crop",
    "randaugment", "random_erasing", "random_resized_crop", "trivial_augment",
]  # fmt: skip
