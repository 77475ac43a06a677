"""What augmentation costs: python -m benchmarks.augment [--pieces flip,crop] [--size 224] [--no_step] [--repeats 5]

Each row is one piece alone, compiled on a batch of a resident set (uint8 images that lie on the device), as the step
calls it: images a second, and what it adds to normalising, as a share of a training step of ResNet-20 on 32 x 32
images, of ResNet-50 on 224 x 224. Sides are measured in turn.
"""

import statistics
from typing import Any

from benchmarks.measure import (
    Others,
    Report,
    Table,
    begin,
    in_turn,
    make_parser,
    milliseconds,
    on_gpu,
    say,
    set_up,
    timed,
)
from benchmarks.step import CASES, OurStep, random_batch

PIECES: dict[str, dict[str, Any]] = {
    "normalise": {},
    "flip": {"flip": True},
    "crop_padding": {"crop_padding": 4},
    "random_resized_crop": {"random_resized_crop": True},
    "affine": {"rotation": 15.0, "shift": 0.1, "shear": 10.0, "zoom": 0.1},
    "randaugment": {"randaugment_ops": 2},
    "trivial_augment": {"trivial_augment": True},
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "hue": {"hue": 0.1},
    "grayscale": {"grayscale": 0.2},
    "blur": {"blur": 2.0},
    "noise": {"noise": 0.1},
    "cutout": {"cutout": 8},
    "random_erasing": {"random_erasing": 0.25},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "flip_crop_cutout": {"flip": True, "crop_padding": 4, "cutout": 8},  # the usual of CIFAR-10
    "imagenet": {"flip": True, "random_resized_crop": True, "randaugment_ops": 2, "random_erasing": 0.25,
                 "mixup": 0.8, "cutmix": 1.0},
}  # fmt: skip
MODELS = {32: "resnet20", 224: "resnet50"}  # of whose step the share is
CPU_BATCH = {32: 128, 224: 32}
BASE = "normalise"


class Side:
    """One piece on one batch, compiled."""

    def __init__(self, piece: dict[str, Any], batch: dict[str, Any], num_classes: int):
        import jax

        from jaxcnn.augment import make_augment
        from jaxcnn.config import AugmentConfig

        augment = make_augment(
            AugmentConfig(**piece), mean=(0.5,) * 3, std=(0.25,) * 3, image_shape=batch["image"].shape[1:],
            num_classes=num_classes,
        )  # fmt: skip
        self._arguments = jax.random.split(jax.random.key(0), len(batch["label"])), batch["image"], batch["label"]
        self._compiled = jax.jit(augment).lower(*self._arguments).compile()
        self._last: Any = None

    def call(self) -> None:
        self._last = self._compiled(*self._arguments)

    def wait(self) -> None:
        import jax

        jax.block_until_ready(self._last)


def step_seconds(size: int, batch: int | None) -> tuple[str, float]:
    """The model, and the seconds of its training step an image."""
    case = next(case for case in CASES if case.model == MODELS[size])
    count = batch or (case.gpu_batch if on_gpu() else case.cpu_batch)
    step = OurStep(case, random_batch(case, count), precision="bf16" if on_gpu() else "f32")
    step.compile()
    return case.model, timed(step.train, step.wait)() / count


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--pieces", help=f"comma-separated, of {', '.join(PIECES)}")
    parser.add_argument("--size", type=int, choices=sorted(MODELS), help="of the images (default: both)")
    parser.add_argument("--batch", type=int, help="default: by size and device")
    parser.add_argument("--no_step", action="store_true", help="without the share of a step")
    options = parser.parse_args()
    wanted = options.pieces.split(",") if options.pieces else list(PIECES)
    unknown = set(wanted) - PIECES.keys()
    if unknown:
        raise SystemExit(f"--pieces: {', '.join(sorted(unknown))} is not among {', '.join(PIECES)}")
    set_up(options, compilation_cache=False, torch_here=False)
    import jax

    report, others = Report(options.json, "augment"), Others()
    for size in [options.size] if options.size else sorted(MODELS):
        case = next(case for case in CASES if case.model == MODELS[size])
        count = options.batch or (case.gpu_batch if on_gpu() else CPU_BATCH[size])
        batch = jax.device_put(random_batch(case, count))
        model, a_step = (None, None) if options.no_step else step_seconds(size, options.batch)
        if model and a_step:
            say(f"a step of {model} takes {1000 * a_step:.4g} ms an image")
        table = Table(augmentation=20, size=5, batch=5, ms_a_batch=15, images_by_s=12, share_of_step=14)
        base = Side({}, batch, case.num_classes)
        for name in dict.fromkeys([BASE, *wanted]):
            side = Side(PIECES[name], batch, case.num_classes)
            found = in_turn(
                {name: timed(side.call, side.wait, at_least=0.1), "base": timed(base.call, base.wait, at_least=0.1)},
                options.repeats,
            )
            middle = statistics.median(found[name])
            extra = statistics.median(own - base_own for own, base_own in zip(found[name], found["base"], strict=True))
            share = max(0.0, extra) / count / a_step if a_step else None
            cells = (
                milliseconds(found[name]),
                f"{count / middle:,.0f}",
                f"{100 * share:.2f} %" if share is not None else "",
            )
            table.row(name, size, count, *cells)
            report.add(augmentation=name, size=size, batch=count, model=model, seconds=found, share_of_step=share,
                       images_per_second=count / middle)  # fmt: skip
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
