"""Images as people give them (files, folders, bytes, Pillow's, arrays), each made into what a run's evaluation sees.

They are decoded by threads, ahead of who asks and never by many: a list of a million files takes no more memory.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.decoding import FILE_LIMIT, decode_any, fit_image, from_array, from_pillow
from jaxcnn.data.folder import image_files
from jaxcnn.data.records import ImageShape
from jaxcnn.data.streaming import num_cores
from jaxcnn.errors import UserError
from jaxcnn.files import read_bytes
from jaxcnn.terminal import short_line

Given = tuple[str, Any]  # what to call it, and a path, bytes, Pillow's image, an array; or the error that was met there

_MAX_THREADS = 16


def each_image(images: Any) -> Iterator[Given]:
    """Images one by one, of a file's path, or a folder's, for its files; bytes; Pillow's; arrays; or many of these.

    Arrays are [height, width], [height, width, 1, 3 or 4], or many of one size, [n, height, width, channels].

    Raises:
      UserError: something is none of these, or a path leads nowhere, or to a folder without images.
    """
    if isinstance(images, str | os.PathLike):
        yield from _files(os.path.expanduser(os.fspath(images)))
    elif _is_one(images):
        yield "the image", images
    elif isinstance(images, Iterable) and getattr(images, "ndim", 1) in (1, 4):  # 1: a column of a table, of paths
        for number, image in enumerate(images):
            if isinstance(image, str | os.PathLike):
                yield from each_image(image)
            elif _is_one(image):
                yield f"image {number}", image
            else:
                raise UserError(f"image {number} is no image but {_what(image)}")
    else:
        raise UserError(f"{_what(images)} is no image: give paths, bytes, Pillow's images or arrays")


def folder_of_all(arguments: list[str]) -> str:
    """The deepest folder that all images of a command's arguments lie in; the root where paths come from stdin."""
    if "-" in arguments:
        return os.path.abspath(os.sep)
    return os.path.commonpath(
        os.path.abspath(each) if os.path.isdir(each) else os.path.dirname(os.path.abspath(each)) for each in arguments
    )


def prepared(
    given: Iterable[Given], *, image_shape: ImageShape, ahead: int, resized: int | None = None, whole: bool = False
) -> Iterator[tuple[str, np.ndarray | ValueError]]:
    """(what it is called, uint8 of image_shape, or what is wrong with it) of each, in the order given.

    Args:
      given: of each_image.
      image_shape: height, width, channels of what is cropped.
      ahead: so many images are decoded, or being decoded, before they are asked for.
      resized: see decoding.fit_image.
      whole: images keep their size; of image_shape the channels count.
    """
    waiting: deque[tuple[str, Future[np.ndarray | ValueError]]] = deque()
    threads = ThreadPoolExecutor(min(num_cores(), _MAX_THREADS))
    try:
        for name, image in given:
            waiting.append((name, threads.submit(_prepare, image, image_shape, resized, whole)))
            if len(waiting) > ahead:
                name, result = waiting.popleft()
                yield name, result.result()
        while waiting:
            name, result = waiting.popleft()
            yield name, result.result()
    finally:
        threads.shutdown(cancel_futures=True)


def _prepare(image: Any, image_shape: ImageShape, resized: int | None, whole: bool) -> np.ndarray | ValueError:
    import cv2

    channels = image_shape[2]
    try:
        if isinstance(image, Exception):
            raise image
        if isinstance(image, str):
            image = read_bytes(image, limit=FILE_LIMIT)
        if channels not in (1, 3) and getattr(image, "ndim", 0) != 3:
            raise ValueError(f"the network was trained on images of {channels} channels, which only arrays have")
        if isinstance(image, bytes | bytearray | memoryview):
            pixels = decode_any(bytes(image), channels)
        elif hasattr(image, "getexif"):
            pixels = from_pillow(image, channels)
        else:
            pixels = from_array(np.asarray(image), channels)
        return pixels if whole else fit_image(pixels, image_shape, resized=resized)
    except OSError as error:
        return ValueError(error.strerror or short_line(error))
    except cv2.error as error:  # of sides beyond what OpenCV resizes
        return ValueError(short_line(error))
    except ValueError as error:
        return error


def _files(path: str) -> Iterator[Given]:
    if not os.path.isdir(path):
        if not os.path.lexists(path):
            raise UserError(f"there is no file or folder {path!r}")
        yield path, path
        return
    unreadable: list[OSError] = []
    has_image = False
    for file in image_files(Path(path), unreadable.append):
        has_image = True
        yield file, file
    for error in unreadable:
        yield str(error.filename), error
    if not has_image and not unreadable:
        raise UserError(f"there are no images in the folder {path!r}, told by their suffixes")


def _is_one(image: Any) -> bool:
    """Whether it is one image: bytes, Pillow's, or an array of one image."""
    is_file = isinstance(image, bytes | bytearray | memoryview) or hasattr(image, "getexif")
    return is_file or (hasattr(image, "__array__") and getattr(image, "ndim", 0) in (2, 3))


def _what(image: Any) -> str:
    shape = getattr(image, "shape", None)
    return f"{type(image).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}"
