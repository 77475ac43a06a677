"""Encoded images to uint8 [H, W, C], and to the size of the run."""

import math

import numpy as np

from jaxcnn.data.records import ImageShape


def decode_image(encoded: bytes, num_channels: int) -> np.ndarray:
    """A JPEG or PNG as TensorFlow does: grey becomes RGB where the set declares it, EXIF orientation is ignored."""
    import cv2

    mode = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(num_channels, cv2.IMREAD_UNCHANGED)
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("neither JPEG nor PNG")
    if num_channels >= 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB if num_channels == 3 else cv2.COLOR_BGRA2RGBA)
    return image if image.ndim == 3 else image[:, :, None]


def fit_image(image: np.ndarray, image_shape: ImageShape) -> np.ndarray:
    """Resizes so that the shorter side fits, then crops the centre: [H, W, C] to image_shape."""
    if image.shape == image_shape:
        return image
    height, width, channels = image_shape
    scale = max(height / image.shape[0], width / image.shape[1])
    resized_height = max(height, round(image.shape[0] * scale))
    resized_width = max(width, round(image.shape[1] * scale))
    image = resize_image(image, resized_height, resized_width)
    top, left = (resized_height - height) // 2, (resized_width - width) // 2
    return image[top : top + height, left : left + width].reshape(height, width, channels)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] to [height, width, C]: bilinear, and antialiased where it shrinks, as Pillow's.

    Halved while that is not too small, then bilinear to a multiple of the size, and means of blocks. Nearer to Pillow's
    than OpenCV's area filter is, in half the time (docs/performance.md).
    """
    import cv2

    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    multiple = math.ceil(image.shape[1] / width) * width, math.ceil(image.shape[0] / height) * height
    image = cv2.resize(image, multiple, interpolation=cv2.INTER_LINEAR)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return image.reshape(height, width, -1)  # OpenCV drops the last axis where C = 1
