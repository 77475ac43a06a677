"""Every family of the zoo by every export: python -m benchmarks.exports [--models resnet20] [--write docs/export.md]

Random weights and statistics, which show that an export computes the same, and nothing of accuracy. The difference is
the largest of the logits, divided by the largest logit, on --images random images, in batches of several sizes.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Report, Table, begin, make_parser, say, set_up
from benchmarks.zoo import FAMILIES, case_of, write_between_markers

MARKER = "<!-- benchmarks.exports -->"


def random_network(name: str, *, image_size: int | None = None, num_classes: int | None = None, **options: Any) -> Any:
    """A model of the zoo with random weights and statistics, as jaxcnn.export has a run's; options of ModelConfig."""
    import jax
    import jax.numpy as jnp

    from jaxcnn.config import ModelConfig
    from jaxcnn.export.network import Network
    from jaxcnn.layers.conv import by
    from jaxcnn.models.make import make_model

    case = case_of(name)
    shape = case.image_shape if image_size is None else (image_size, image_size, case.image_shape[-1])
    classes = num_classes or case.num_classes
    module = make_model(ModelConfig(name=name, **options), num_classes=classes, image_size=shape[0])
    example = jnp.zeros((1, *shape))
    drawn = jax.eval_shape(by("xla", lambda key: module.init(key, example, train=False)), jax.random.key(0))
    variables = {"params": _random(drawn["params"]), "batch_stats": _random(drawn.get("batch_stats", {}))}
    names = [f"class {number}" for number in range(classes)]
    facts: dict[str, Any] = {
        "model": name, "task": "classification", "class_names": names, "image_shape": list(shape), "data": "none",
        "mean": [0.45] * shape[-1], "std": [0.25] * shape[-1], "channels": "RGB",
    }  # fmt: skip
    return Network(module, variables, shape, tuple(facts["mean"]), tuple(facts["std"]), False, facts)


def _random(tree: Any) -> Any:
    """Kernels that keep the size of what goes through them; norms and statistics near those of a start."""
    import jax

    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        noise = generator.standard_normal(leaf.shape).astype(np.float32)
        match path[-1].key:
            case "kernel":
                return noise * np.float32(np.sqrt(2 / max(1, np.prod(leaf.shape[:-1]))))
            case "scale" | "var":
                return 1 + np.float32(0.3) * np.tanh(noise)
            case "layer_scale":
                return np.float32(0.1) * noise
            case _:
                return np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(draw, tree)


def measure(name: str, count: int) -> dict[str, Any]:
    """A row."""
    from jaxcnn.export.onnx import run_onnx, to_onnx
    from jaxcnn.export.parity import compare
    from jaxcnn.export.safetensors import run_safetensors, to_safetensors
    from jaxcnn.export.stablehlo import run_stablehlo, to_stablehlo

    network = random_network(name)
    images = np.random.default_rng(1).integers(0, 256, (count, *network.image_shape), np.uint8)
    ours = network.logits(images, batch_size=3)
    row: dict[str, Any] = {"model": name, "pixels": network.image_shape[0], "largest_logit": float(np.abs(ours).max())}

    def add(what: str, make: Any, run: Any) -> bytes:
        start = time.perf_counter()
        content: bytes = make()
        row[f"{what}_seconds"], row[f"{what}_bytes"] = time.perf_counter() - start, len(content)
        parity = compare(ours, run(content), task="classification", what="random images")
        row[f"{what}_difference"] = parity.difference / parity.largest
        return content

    def onnx() -> bytes:
        model = to_onnx(network.function, network.variables, network.example)
        row["onnx_nodes"] = len(model.graph.node)
        return bytes(model.SerializeToString())

    add("onnx", onnx, lambda content: run_onnx(content, images, batch_size=3))
    add(
        "stablehlo", lambda: to_stablehlo(network.function, network.variables, network.example, network.facts),
        lambda content: run_stablehlo(content, images, batch_size=3),
    )  # fmt: skip
    add("safetensors", lambda: to_safetensors(network), lambda content: run_safetensors(content, images, network))
    return row


def markdown(rows: Sequence[dict[str, Any]], count: int) -> str:
    """The table for the documentation."""
    import onnxruntime

    lines = [
        f"Random weights; {count} random images; the largest difference of the logits over the largest logit. ONNX is",
        f"run by onnxruntime {onnxruntime.__version__}, StableHLO by jax.export, safetensors read back; all on a CPU.",
        "",
        "| model | pixels | ONNX: nodes | MB | difference | StableHLO | safetensors |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['model']}` | {row['pixels']} | {row['onnx_nodes']:,} | {row['onnx_bytes'] / 1e6:.1f} | "
            f"{row['onnx_difference']:.0e} | {row['stablehlo_difference']:.0e} | {row['safetensors_difference']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--models", help="comma-separated (default: one of every family)")
    parser.add_argument("--images", type=int, default=7, help="random images to compare on")
    parser.add_argument("--write", type=Path, help="a Markdown file with two markers")
    options = parser.parse_args()
    if options.write and (not options.write.exists() or options.write.read_text().count(MARKER) != 2):
        raise SystemExit(f"--write: {options.write} does not have {MARKER} twice")
    set_up(options, compilation_cache=False, torch_here=False)
    report, rows = Report(options.json, "exports"), []
    table = Table(model=20, nodes=6, onnx=8, stablehlo=9, safetensors=11, MB=7, onnx_s=7, stablehlo_s=11)
    for name in options.models.split(",") if options.models else FAMILIES:
        row = measure(name, options.images)
        rows.append(row)
        report.add(**row)
        differences = [row[f"{each}_difference"] for each in ("onnx", "stablehlo", "safetensors")]
        table.row(
            name, row["onnx_nodes"], *(f"{each:.0e}" for each in differences),
            f"{row['onnx_bytes'] / 1e6:.1f}", f"{row['onnx_seconds']:.1f}", f"{row['stablehlo_seconds']:.1f}",
        )  # fmt: skip
        if options.write:
            write_between_markers(options.write, markdown(rows, options.images), MARKER)
    report.finish()
    say("finished")


if __name__ == "__main__":
    begin(main)
