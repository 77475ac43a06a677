"""Encoded images to uint8 [H, W, C], and to the size of the run."""

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
    """Resizes the shorter side (area when shrinking, cubic when growing), then crops the centre. [H, W, C] to that."""
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
    """[H, W, C] to [height, width, C], also where C = 1, which OpenCV drops."""
    import cv2

    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation).reshape(height, width, image.shape[2])
