"""Examples a second of each way to feed a step, and its share of one: python -m benchmarks.input [--what cifar10 jpeg]

cifar10: jaxcnn's set on the device and its stream, beside tfds.data_source with Grain an item at a time, and PyTorch's
DataLoader over the same records. Each round opens its feed anew, takes the first batches untimed, and times the next.

jpeg: photos of 500 x 375 to random crops of 224, uint8 batches on the host: OpenCV's decoder alone, jaxcnn's stream,
PyTorch's DataLoader with Pillow, and tf.data that decodes the crop alone, on the same files. By CPU time, which others
on the machine do not lengthen: images a second of a core. --torch_python and --tensorflow_python name interpreters that
have what this one lacks.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.input_peers import UNTIMED, seconds_an_image
from benchmarks.measure import (
    NOT_INSTALLED,
    Others,
    Report,
    Table,
    begin,
    has_torch,
    in_turn,
    make_parser,
    milliseconds,
    num_cores,
    ratio,
    say,
    set_up,
    timed,
)
from benchmarks.overhead import bare_step
from jaxcnn.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def seconds_a_batch(batches: Iterator[Any], seconds: float) -> float:
    """Of taking one, over about so many seconds."""
    for _ in range(UNTIMED):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or count < 4:
        next(batches)
        count += 1
    return (time.perf_counter() - start) / count


def our_feed(argv: list[str], seconds: float) -> Callable[[], float]:
    """Seconds a batch of what the loop asks its feed for, on the device."""

    def batches(run: Any, feed: Any) -> Iterator[Any]:
        import jax

        data, fetch = feed.data(), jax.jit(lambda data, inputs: feed.fetch(data, jax.tree.map(lambda x: x[0], inputs)))
        for step in itertools.count():
            yield jax.block_until_ready(fetch(data, feed.inputs(step, 1)))

    def measure() -> float:
        run, feed = build_run(argv)
        with contextlib.closing(feed):
            return seconds_a_batch(batches(run, feed), seconds)

    return measure


def build_run(argv: list[str]) -> Any:
    from absl import flags

    from jaxcnn.config.command_line import load_config
    from jaxcnn.training.build import build

    config, _ = load_config(["", *argv], flag_values=flags.FlagValues())
    return build(config)


def grain_by_item(name: str, folder: str | None, size: int, batch: int, seconds: float) -> Callable[[], float]:
    """`tfds.data_source` and Grain, an item of the set at a time: what their documentation shows."""

    def measure() -> float:
        import grain
        import tensorflow_datasets as tfds
        from absl import flags

        from jaxcnn.data.decoding import fit_image

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        source = tfds.data_source(name, split="train", data_dir=folder)

        def transform(example: dict[str, Any]) -> dict[str, Any]:
            return {"image": fit_image(example["image"], (size, size, 3)), "label": example["label"]}

        dataset = grain.MapDataset.source(source).shuffle(seed=0).repeat().map(transform).batch(batch)
        return seconds_a_batch(iter(dataset.to_iter_dataset()), seconds)

    return measure


class TorchItems:
    """A map-style dataset over a split of jaxcnn's: reads and decodes one item."""

    def __init__(self, split: Any, size: int):
        self._split, self._shape = split, (size, size, 3)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from jaxcnn.data.decoding import fit_image

        example = self._split[index]
        return fit_image(example["image"], self._shape), example["label"]


def torch_loader(split: Any, size: int, batch: int, workers: int, seconds: float) -> Any:
    """PyTorch's DataLoader, shuffling."""

    def measure() -> float:
        from torch.utils.data import DataLoader

        items: Any = TorchItems(split, size)
        context = "forkserver" if workers else None  # JAX's threads do not survive a fork
        loader = DataLoader(items, batch, shuffle=True, num_workers=workers, drop_last=True,
                            multiprocessing_context=context, persistent_workers=workers > 0)  # fmt: skip
        endless = itertools.chain.from_iterable(itertools.repeat(loader))
        return seconds_a_batch(endless, seconds)

    return measure


def measure_cifar10(argv: list[str], options: Any, report: Report) -> None:
    """A table of CIFAR-10, against the step of a model."""
    workers = options.workers or num_cores()
    stream = [*argv, "--config.data.resident=False"]
    with contextlib.closing((pieces := build_run(stream))[1]):
        run, batch = pieces[0], pieces[0].config.batch_size
    prepared, slowest = run.source.name.startswith("tfds:"), "tfds.data_source, Grain by item"
    sides: dict[str, Callable[[], float]] = {"ours, on the device": our_feed(argv, options.seconds)}
    if importlib.util.find_spec("grain"):
        for name, count in ((f"{workers} processes", workers), ("threads", 0)):
            streamed = [*stream, f"--config.data.num_workers={count}"]
            sides[f"ours, streamed by {name}"] = our_feed(streamed, options.seconds)
    else:
        say(f"cifar10: without the streams: grain is {NOT_INSTALLED}")
    if prepared:
        sides[slowest] = grain_by_item(run.source.name.removeprefix("tfds:"), None, 32, batch, options.seconds)
    if has_torch():
        split = run.source.splits["train"]
        sides[f"PyTorch DataLoader, {workers} workers"] = torch_loader(split, 32, batch, workers, options.seconds)
    found = in_turn(sides, options.repeats)
    resident_run, feed = build_run(argv)
    with contextlib.closing(feed):
        step_seconds = sorted(timed(*bare_step(resident_run, feed))() for _ in range(3))[1]
    say(f"cifar10: batch {batch}; a step of {run.config.model.name} takes {1000 * step_seconds:.4g} ms")
    table = Table(feed=40, ms_a_batch=14, images_a_second=16, share_of_a_step=16, times_Grain_by_item=22)
    for side, values in found.items():
        share = sorted(values)[len(values) // 2] / step_seconds
        times = ratio(found, slowest, side)
        rate = batch / sorted(values)[len(values) // 2]
        table.row(side, milliseconds(values), f"{rate:,.0f}", f"{100 * share:.2f} %", str(times or ""))
        report.add(set="cifar10", feed=side, batch=batch, seconds=values, images_per_second=rate, share_of_a_step=share,
                   step_seconds=step_seconds, ratio=times)  # fmt: skip
    if not has_torch():
        table.row("PyTorch DataLoader", NOT_INSTALLED, "", "", "")


def photos(count: int, *, height: int = 375, width: int = 500, quality: int = 90) -> list[bytes]:
    """JPEGs of scikit-learn's two photos, cropped and mirrored in many ways."""
    import cv2
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    sources = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    generator, encoded = np.random.default_rng(0), []
    for number in range(count):
        source = sources[number % 2]
        rows, columns = (int(size * generator.uniform(0.75, 1)) for size in source.shape[:2])
        top, left = (int(generator.integers(size - part + 1)) for size, part in
                     zip(source.shape[:2], (rows, columns), strict=True))  # fmt: skip
        part = source[top : top + rows, left : left + columns][:, :: (-1) ** (number // 2)]
        file = io.BytesIO()
        photo = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_AREA)
        Image.fromarray(photo).save(file, "JPEG", quality=quality)
        encoded.append(file.getvalue())
    return encoded


Sides = dict[str, Callable[[], tuple[float, float]]]  # each gives seconds an image: wall clock, CPU time


def decoder_alone(jpegs: list[bytes], seconds: float) -> Callable[[], tuple[float, float]]:
    """OpenCV, in one thread, without crop or resize: what a stream that decodes whole images cannot beat."""
    import cv2
    import numpy as np

    def decode() -> Iterator[None]:
        for encoded in itertools.cycle(jpegs):
            cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
            yield

    return lambda: seconds_an_image(decode(), 1, seconds)


def our_stream(folder: Path, options: Any, num_workers: int) -> Callable[[], tuple[float, float]]:
    """Batches as StreamingFeed takes them, before they go to the device."""
    from jaxcnn.config import AugmentConfig, DataConfig
    from jaxcnn.data import open_source, train_batches

    source = open_source(DataConfig(name="tfds:photos", dir=str(folder), image_size=224, validation_split="test"))

    def measure() -> tuple[float, float]:
        with train_batches(
            source.splits["train"], seed=0, batch_size=options.batch, start_step=0, image_shape=source.image_shape,
            augment=AugmentConfig(random_resized_crop=True), num_workers=num_workers,
            prefetch_batches=options.prefetch,
        ) as batches:  # fmt: skip
            return seconds_an_image(batches, options.batch, options.seconds)

    return measure


class Peer:
    """A side of benchmarks.input_peers, in an interpreter of its own."""

    def __init__(self, python: str, side: str, folder: Path, options: Any):
        arguments = [side, folder, options.batch, 224, num_cores(), options.seconds]
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.input_peers", *map(str, arguments)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __call__(self) -> tuple[float, float]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wall, cpu = json.loads(self._process.stdout.readline() or "[NaN, NaN]")
        return wall, cpu

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def measure_jpeg(options: Any, report: Report) -> None:
    """A table of photos, by CPU time; with more than one core, other processes' CPU time is not counted."""
    from tests.fake_tfds import write_jpegs

    jpegs = photos(options.images)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        write_jpegs(folder, "photos", jpegs)
        (folder / "files").mkdir()
        for number, encoded in enumerate(jpegs):
            (folder / "files" / f"{number:08d}.jpg").write_bytes(encoded)
        floor, ours = "OpenCV's decoder alone", "ours, by threads"
        sides: Sides = {floor: decoder_alone(jpegs, options.seconds), ours: our_stream(folder, options, 0)}
        if num_cores() > 1:
            sides[f"ours, by {num_cores()} processes"] = our_stream(folder, options, num_cores())
        for side, module, label, python in (
            ("torch", "torch", "PyTorch DataLoader, Pillow", options.torch_python),
            ("tensorflow", "tensorflow", "tf.data, decode_and_crop_jpeg", options.tensorflow_python),
        ):
            if python or importlib.util.find_spec(module):
                peer = sides[label] = Peer(python or sys.executable, side, folder / "files", options)
                stack.callback(peer.close)
        found = in_turn(sides, options.repeats)  # type: ignore[type-var, arg-type]
    kilobytes = sum(map(len, jpegs)) / len(jpegs) / 1000
    say(f"jpeg: 500x375, {kilobytes:.0f} kB, to random crops of 224; batch {options.batch}, {num_cores()} cores")
    by_wall = {side: [wall for wall, _ in values] for side, values in found.items()}
    by_cpu = {side: [cpu for _, cpu in values] for side, values in found.items()}
    table = Table(feed=32, CPU_ms_an_image=16, images_s_and_core=18, wall_clock_images_s=20, CPU_over_ours=20)
    for side in found:
        # The CPU time of processes that decode is not this process's.
        alone = "processes" not in side and (num_cores() == 1 or "DataLoader" not in side)
        cpu, wall = (sorted(values[side])[options.repeats // 2] for values in (by_cpu, by_wall))
        times = ratio(by_cpu, side, ours) if alone else None
        table.row(side, milliseconds(by_cpu[side]) if alone else "", f"{1 / cpu:,.0f}" if alone else "",
                  f"{1 / wall:,.0f}", str(times or ""))  # fmt: skip
        report.add(set="jpeg", feed=side, batch=options.batch, cores=num_cores(), seconds_an_image=by_wall[side],
                   cpu_seconds_an_image=by_cpu[side] if alone else None, ratio=times,
                   wall_ratio=ratio(by_wall, side, ours))  # fmt: skip
    for module, label in (("torch", "PyTorch DataLoader, Pillow"), ("tensorflow", "tf.data, decode_and_crop_jpeg")):
        if label not in found:
            table.row(label, NOT_INSTALLED, "", "", f"--{module}_python")


def main() -> None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--what", nargs="+", choices=("cifar10", "jpeg"), default=("cifar10", "jpeg"))
    parser.add_argument("--seconds", type=float, default=3.0, help="timed a round and feed")
    parser.add_argument("--data", default="tfds:cifar10", help="data.name of CIFAR-10")
    parser.add_argument("--workers", type=int, help="decoding processes (default: as many as cores)")
    parser.add_argument("--images", type=int, default=512, help="JPEGs generated")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--prefetch", type=int, default=4, help="data.prefetch_batches of ours, on jpeg")
    parser.add_argument("--model", default="resnet20", help="whose step the share is of, on cifar10")
    parser.add_argument("--torch_python", help="an interpreter with torch and Pillow, for jpeg")
    parser.add_argument("--tensorflow_python", help="one with tensorflow")
    options = parser.parse_args()
    set_up(options)
    report, others = Report(options.json, "input"), Others()
    if "cifar10" in options.what:
        argv = [f"--config=experiments/cifar10.py:{options.model}", f"--config.batch_size={options.batch}",
                f"--config.data.name={options.data}"]  # fmt: skip
        try:
            measure_cifar10(argv, options, report)
        except UserError as error:
            say(f"cifar10: skipped: {error}")
    if "jpeg" in options.what:
        measure_jpeg(options, report)
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
