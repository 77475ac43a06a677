"""One variant of every family at its usual size: python -m benchmarks.zoo [--models vgg11_bn] [--write docs/models.md]

Seconds to compile a training step, images a second in training and in prediction, float32, one batch that lies on the
device; what `--write` names has the table between its two `benchmarks.zoo` markers replaced.
"""

import gc
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, Table, begin, in_turn, machine, make_parser, on_gpu, say, set_up, timed
from benchmarks.step import Case, OurStep, random_batch

FAMILIES = (
    "mlp", "lenet5", "cnn", "airbench94", "resnet20", "preact_resnet18", "wrn_16_4", "densenet_bc_100_12", "resnet18",
    "resnet50", "resnext50_32x4d", "seresnet18", "cbam_resnet18", "alexnet", "vgg11_bn", "squeezenet1_1", "googlenet",
    "inception_v3", "densenet121", "mixer_s16", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small",
    "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_ti_16",
)  # fmt: skip
MARKER = "<!-- benchmarks.zoo -->"


def case_of(name: str) -> Case:
    """At the published image size; a batch of 128 small images or 8 large ones."""
    from jaxcnn.models.published import PUBLISHED

    size = PUBLISHED[name].image_size
    large = size > 32
    shape = (size, size, 1 if size == 28 else 3)
    return Case(
        name, shape, 8 if large else 128, 128 if large else 1024, num_classes=1000 if large else 10,
        stem="imagenet" if large else "small",
    )  # fmt: skip


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """A row."""
    size = case.gpu_batch if on_gpu() else case.cpu_batch
    others = Others()
    ours = OurStep(case, random_batch(case, size), precision="f32")
    compile_seconds = ours.compile()
    start = time.perf_counter()
    ours.forward()
    ours.wait()
    forward_seconds = time.perf_counter() - start
    found = in_turn({"train": timed(ours.train, ours.wait), "forward": timed(ours.forward, ours.wait)}, repeats)
    train, forward = (statistics.median(found[side]) for side in ("train", "forward"))
    return {
        "model": case.model, "pixels": case.image_shape[0], "batch": size, "num_params": ours.num_params,
        "compile_seconds": compile_seconds, "first_forward_seconds": forward_seconds, "seconds": found,
        "train_images_per_second": size / train, "forward_images_per_second": size / forward,
        "gigaflops_a_second": ours.gigaflops() / train, "others_cpu_share": others.share(),
    }  # fmt: skip


def markdown(rows: Sequence[dict[str, Any]], repeats: int) -> str:
    """The table for the documentation, and where it was measured."""
    place = machine()
    where = ", ".join(place["accelerators"]) or f"{place['cores']} cores of {place['cpu']}"
    lines = [
        f"float32, {where}; medians of {repeats}. Images a second of a training step (forward, backward, update) and",
        "of prediction, on a batch that lies on the device; seconds to compile the training step.",
        "",
        "| model | pixels | batch | parameters | compiling, s | training, images/s | prediction, images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['model']}` | {row['pixels']} | {row['batch']} | {row['num_params']:,} | "
            f"{row['compile_seconds']:.1f} | {_rate(row['train_images_per_second'])} | "
            f"{_rate(row['forward_images_per_second'])} |"
        )
    return "\n".join(lines)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_between_markers(file: Path, text: str, marker: str = MARKER) -> None:
    before, _, after = file.read_text().split(marker)
    file.write_text(f"{before}{marker}\n{text}\n{marker}{after}")


def main() -> None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--models", help="comma-separated (default: one of every family)")
    parser.add_argument("--write", type=Path, help="a Markdown file with the two markers")
    options = parser.parse_args()
    if options.write and (not options.write.exists() or options.write.read_text().count(MARKER) != 2):
        raise SystemExit(f"--write: {options.write} does not have {MARKER} twice")
    set_up(options, compilation_cache=False, torch_here=False)
    from jaxcnn.models.published import PUBLISHED

    names = options.models.split(",") if options.models else FAMILIES
    if unknown := set(names) - set(PUBLISHED):
        raise SystemExit(f"--models: no model is named {', '.join(sorted(unknown))}; see python -m jaxcnn.models")
    report, others, rows = Report(options.json, "zoo"), Others(), []
    table = Table(model=20, pixels=7, batch=6, compile_s=10, train_images_s=15, forward_images_s=17, GFLOP_s=9)
    for name in names:
        row = measure(case_of(name), options.repeats)
        gc.collect()
        rows.append(row)
        report.add(**row)
        table.row(
            name, row["pixels"], row["batch"], f"{row['compile_seconds']:.1f}", _rate(row["train_images_per_second"]),
            _rate(row["forward_images_per_second"]), f"{row['gigaflops_a_second']:.0f}",
        )  # fmt: skip
        if options.write:
            write_between_markers(options.write, markdown(rows, options.repeats))
    report.finish()
    others.warn()
    say("finished")


if __name__ == "__main__":
    begin(main)
