"""The other sides of benchmarks.input on photos, each in an interpreter of its own, which needs nothing of ours.

python -m benchmarks.input_peers torch|tensorflow FOLDER BATCH SIZE CORES SECONDS: for each line on its input, one line
of output: seconds of wall clock and of CPU an image. Both give uint8 random crops, shuffled, as their users write them.
"""

import itertools
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNTIMED = 6  # batches: what was decoded ahead of the first, and a little more


def seconds_an_image(batches: Iterator[Any], batch: int, seconds: float) -> tuple[float, float]:
    """(wall clock, CPU time of this process) over about so many seconds."""
    for _ in range(UNTIMED):
        next(batches)
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds or count < 4:
        next(batches)
        count += 1
    images = count * batch
    return (time.perf_counter() - start) / images, (time.process_time() - cpu) / images


class Photos:
    """As torchvision's ImageFolder with RandomResizedCrop and PILToTensor: Pillow decodes, crops and resizes."""

    def __init__(self, folder: Path, size: int):
        self._paths, self._size = sorted(folder.glob("*.jpg")), size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import numpy as np
        import torch
        from PIL import Image

        with self._paths[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        top, left, height, width = self._box(image.height, image.width)
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1), index % 10

    @staticmethod
    def _box(height: int, width: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = height * width * random.uniform(0.08, 1.0)
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_width <= width and 0 < box_height <= height:
                top, left = random.randint(0, height - box_height), random.randint(0, width - box_width)
                return top, left, box_height, box_width
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side


def torch_batches(folder: Path, batch: int, size: int, cores: int) -> Iterator[Any]:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    photos: Any = Photos(folder, size)
    workers = cores if cores > 1 else 0
    loader = DataLoader(
        photos, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def tensorflow_batches(folder: Path, batch: int, size: int, cores: int) -> Iterator[Any]:
    """The crop alone is decoded, and resized without antialiasing: tf.image's defaults."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)

    def crop(path: Any) -> Any:
        encoded = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded), tf.zeros([0, 0, 4]), area_range=(0.08, 1.0), min_object_covered=0,
            aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        box = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.io.decode_and_crop_jpeg(encoded, box, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.cast(tf.image.resize(image, (size, size)), tf.uint8)

    paths = [str(path) for path in sorted(folder.glob("*.jpg"))]
    labels = [number % 10 for number in range(len(paths))]
    files = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
    crops = files.map(lambda path, label: (crop(path), label), num_parallel_calls=cores, deterministic=True)
    return iter(crops.batch(batch, drop_remainder=True).prefetch(2).as_numpy_iterator())


def main() -> None:
    if len(sys.argv) != 7:
        print(__doc__)
        raise SystemExit(0 if "--help" in sys.argv else 2)
    side, folder = sys.argv[1], Path(sys.argv[2])
    batch, size, cores = map(int, sys.argv[3:6])
    batches = {"torch": torch_batches, "tensorflow": tensorflow_batches}[side](folder, batch, size, cores)
    for _ in sys.stdin:
        print(json.dumps(seconds_an_image(batches, batch, float(sys.argv[6]))), flush=True)


if __name__ == "__main__":
    main()
