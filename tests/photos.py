"""Real colour photographs for tests: those that scikit-learn brings."""

import functools

import numpy as np


@functools.cache
def photo(name: str, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3] from "china.jpg" or "flower.jpg": every third pixel of the middle."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image(name)[::3, ::3]
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])
