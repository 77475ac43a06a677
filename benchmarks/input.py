"""Examples a second of each way to feed a step, and its share of one: python -m benchmarks.input [--what cifar10 jpeg]

cifar10: jaxcnn's set on the device and its stream, beside tfds.data_source with Grain an item at a time, and PyTorch's
DataLoader over the same records. jpeg: the same (without the set on the device) on generated JPEGs of 500 x 375, to
random crops of 224. Each round opens its feed anew, takes the first batches untimed, and times the next ones.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    NOT_INSTALLED,
    Others,
    Report,
    Table,
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

UNTIMED = 6  # batches: what was decoded ahead of the first, and a little more


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

    from jaxcnn.build import build
    from jaxcnn.command_line import load_config

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
    """A map-style dataset over a split of jaxcnn's: reads, decodes and crops one item."""

    def __init__(self, split: Any, size: int, crop: bool):
        self._split, self._shape, self._crop = split, (size, size, 3), crop

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import numpy as np

        from jaxcnn.data.decoding import fit_image
        from jaxcnn.data.streaming import random_resized_crop

        example = self._split[index]
        if self._crop:
            return random_resized_crop(np.random.default_rng(), example["image"], self._shape), example["label"]
        return fit_image(example["image"], self._shape), example["label"]


def torch_loader(split: Any, size: int, batch: int, workers: int, seconds: float, *, crop: bool) -> Any:
    """PyTorch's DataLoader, shuffling."""

    def measure() -> float:
        from torch.utils.data import DataLoader

        items: Any = TorchItems(split, size, crop)
        context = "forkserver" if workers else None  # JAX's threads do not survive a fork
        loader = DataLoader(items, batch, shuffle=True, num_workers=workers, drop_last=True,
                            multiprocessing_context=context, persistent_workers=workers > 0)  # fmt: skip
        endless = itertools.chain.from_iterable(itertools.repeat(loader))
        return seconds_a_batch(endless, seconds)

    return measure


def measure_set(what: str, experiment: list[str], folder: str | None, size: int, options: Any, report: Report) -> None:
    """A table of one set."""
    workers = options.workers or num_cores()
    stream = [*experiment, "--config.data.resident=False"]
    crop = what == "jpeg"
    with contextlib.closing((pieces := build_run(stream))[1]):
        run, batch = pieces[0], pieces[0].config.batch_size
    name = run.source.name.removeprefix("tfds:")
    sides: dict[str, Callable[[], float]] = {}
    if what == "cifar10":
        sides["ours, on the device"] = our_feed(experiment, options.seconds)
    sides |= {
        f"ours, streamed by {workers} processes": our_feed(
            [*stream, f"--config.data.num_workers={workers}"], options.seconds
        ),
        "ours, streamed by threads": our_feed([*stream, "--config.data.num_workers=0"], options.seconds),
        "tfds.data_source, Grain by item": grain_by_item(name, folder, size, batch, options.seconds),
    }
    if has_torch():
        split = run.source.splits["train"]
        label = f"PyTorch DataLoader, {workers} workers"
        sides[label] = torch_loader(split, size, batch, workers, options.seconds, crop=crop)
    found = in_turn(sides, options.repeats)
    step_seconds = None
    if what == "cifar10":
        resident_run, feed = build_run(experiment)
        with contextlib.closing(feed):
            step_seconds = sorted(timed(*bare_step(resident_run, feed))() for _ in range(3))[1]
        say(f"{what}: batch {batch}; a step of {run.config.model.name} takes {1000 * step_seconds:.4g} ms")
    else:
        say(f"{what}: batch {batch}")
    slowest = "tfds.data_source, Grain by item"
    table = Table(feed=40, ms_a_batch=14, images_a_second=16, share_of_a_step=16, times_Grain_by_item=22)
    for side, values in found.items():
        share = sorted(values)[len(values) // 2] / step_seconds if step_seconds else None
        times = ratio(found, slowest, side)
        rate = batch / sorted(values)[len(values) // 2]
        table.row(side, milliseconds(values), f"{rate:,.0f}", f"{100 * share:.2f} %" if share else "", str(times))
        report.add(set=what, feed=side, batch=batch, seconds=values, images_per_second=rate, share_of_a_step=share,
                   step_seconds=step_seconds, ratio=times)  # fmt: skip
    if not has_torch():
        table.row("PyTorch DataLoader", NOT_INSTALLED, "", "", "")


def main() -> None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--what", nargs="+", choices=("cifar10", "jpeg"), default=("cifar10", "jpeg"))
    parser.add_argument("--seconds", type=float, default=3.0, help="timed a round and feed")
    parser.add_argument("--workers", type=int, help="decoding processes (default: as many as cores)")
    parser.add_argument("--images", type=int, default=512, help="JPEGs generated")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--model", default="resnet20", help="whose step the share is of, on cifar10")
    options = parser.parse_args()
    set_up(options)
    report, others = Report(options.json, "input"), Others()
    batch = f"--config.batch_size={options.batch}"
    if "cifar10" in options.what:
        argv = [f"--config=experiments/cifar10.py:{options.model}", batch]
        try:
            measure_set("cifar10", argv, None, 32, options, report)
        except UserError as error:
            say(f"cifar10: skipped: {error}")
    if "jpeg" in options.what:
        from tests.fake_tfds import write_set

        with tempfile.TemporaryDirectory() as folder:
            # Noise of 8 levels: files of about 110 kB, as ImageNet's are.
            write_set(Path(folder), "jpegs", splits={"train": options.images, "test": 8}, image_shape=(375, 500, 3),
                      encoding="jpeg", texture=8.0)  # fmt: skip
            argv = ["--config=experiments/cifar10.py", batch, "--config.data.name=tfds:jpegs",
                    f"--config.data.dir={folder}", "--config.data.image_size=224", "--config.augment.crop_padding=0",
                    "--config.augment.random_resized_crop=True", "--config.data.mean=(0.5,0.5,0.5)",
                    "--config.data.std=(0.25,0.25,0.25)"]  # fmt: skip
            measure_set("jpeg", argv, folder, 224, options, report)
    report.finish()
    others.warn()


if __name__ == "__main__":
    main()
