"""Seconds a training step, ours beside PyTorch's: python -m benchmarks.step [--models resnet20] [--scan 4] [--profile]

Ours is the jitted train_step, its state donated, on one batch that lies on the device, without augmentation. PyTorch's
is channels_last, eager and compiled (on a GPU max-autotune, cudnn.benchmark), on the same batch. Both start from uint8
images, both update by SGD with Nesterov momentum and weight decay. Each side has a process of its own, the others
waiting; medians of rounds in turn; compiling is apart. `--models zoo`: larger networks, beside torchvision's (where its
release for this PyTorch is built for CUDA: pip install --no-deps torchvision).
"""

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    NOT_INSTALLED,
    Elsewhere,
    Others,
    Report,
    Table,
    begin,
    geometric_mean,
    has_torch,
    in_turn,
    make_parser,
    milliseconds,
    on_gpu,
    ratio,
    say,
    set_up,
    timed,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the batch it is measured on."""

    model: str
    image_shape: tuple[int, int, int]
    cpu_batch: int
    gpu_batch: int
    num_classes: int = 10
    stem: str = "small"
    where: tuple[str, ...] = ("cpu", "gpu")  # measured by default; "zoo": by `--models zoo`


CASES = (
    Case("lenet5", (28, 28, 1), 128, 512),
    Case("resnet20", (32, 32, 3), 128, 512),
    Case("resnet18", (32, 32, 3), 32, 512),
    Case("airbench94", (32, 32, 3), 128, 1024),
    Case("resnet50", (224, 224, 3), 8, 256, num_classes=1000, stem="imagenet", where=("gpu",)),
    Case("airbench93", (32, 32, 3), 128, 1024, where=()),
    Case("airbench94_muon", (32, 32, 3), 128, 2000, where=()),
    *(
        Case(name, (224, 224, 3), 8, 128, num_classes=1000, stem="imagenet", where=("zoo",))
        for name in ("vgg16", "mobilenet_v2", "densenet121", "efficientnet_b0", "convnext_tiny")
    ),
)


class OurStep:
    """jaxcnn's step on one batch; `train` and `forward` are what is measured."""

    def __init__(self, case: Case, batch: dict[str, Any], *, precision: str, convolution: str = "auto"):
        import jax
        import optax

        from jaxcnn.config import Config, LossConfig, ModelConfig, OptimizerConfig
        from jaxcnn.models import MODELS
        from jaxcnn.models.make import make_model
        from jaxcnn.tasks.classification import make_prepare
        from jaxcnn.tasks.classification.losses import make_loss
        from jaxcnn.tasks.classification.metrics import ACCURACY, TOP5_ACCURACY, metrics_for
        from jaxcnn.tasks.metric import Metrics
        from jaxcnn.training.optim import make_optimizer
        from jaxcnn.training.parallel import make_parallel
        from jaxcnn.training.step import init_state, train_step

        config = ModelConfig(
            name=case.model, stem=case.stem, dtype={"f32": "float32"}.get(precision, "bfloat16")
        )  # fp16 is PyTorch's alone
        if "stem" not in {each.name for each in dataclasses.fields(_class_of(MODELS[case.model]))}:
            config.stem = ModelConfig().stem
        model = make_model(config, num_classes=case.num_classes, image_size=min(case.image_shape[:2]))
        optimizer = make_optimizer(
            OptimizerConfig(name="nesterov", learning_rate=1e-3, weight_decay=5e-4), optax.constant_schedule(1e-3)
        )
        channels = case.image_shape[-1]
        prepare = make_prepare(
            {"mean": (0.5,) * channels, "std": (0.25,) * channels},
            config=Config(),  # which augments nothing
            image_shape=case.image_shape,
            num_classes=case.num_classes,
            resident=True,
        )
        self.step = partial(
            train_step,
            model=model,
            optimizer=optimizer,
            loss=make_loss(LossConfig()),
            prepare=prepare,
            metrics=Metrics(each for each in metrics_for(case.num_classes) if each in (ACCURACY, TOP5_ACCURACY)),
        )
        self.batch, self._key = jax.device_put(batch), jax.random.key(0)
        example = jax.ShapeDtypeStruct(case.image_shape, jax.numpy.float32)
        self.init = jax.jit(partial(init_state, example=example, model=model, optimizer=optimizer))
        self.state = self.init(self._key)
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        self._variables = {
            "params": jax.tree.map(jax.numpy.copy, self.state.params),
            "batch_stats": jax.tree.map(jax.numpy.copy, self.state.batch_stats),
        }
        self._parallel = make_parallel("jit", num_devices=1, convolution=convolution)
        self._compiled: Any = None
        self._forward = self._parallel.compile(
            lambda variables, batch: model.apply(variables, prepare(None, None, batch)[0], train=False), sharded={}
        )
        self._last: Any = None

    def trace(self) -> Any:
        """The step, traced and lowered as a run's is; nothing is compiled."""
        call: Any = self._parallel.compile(self.step, sharded={}, donate=(0,))
        return call.lower(self.state, self.batch, self._key)

    def compile(self) -> float:
        """Compiles the step; the seconds."""
        import time

        start = time.perf_counter()
        self._compiled = self.trace().compile()
        return time.perf_counter() - start

    def gigaflops(self) -> float:
        """Of one step, as XLA counts them, and of oneDNN's convolutions."""
        from jaxcnn.layers.onednn.call import flops

        cost = self._compiled.cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        return (cost.get("flops", float("nan")) + flops(self._compiled.as_text())) / 1e9

    def train(self) -> None:
        """One update."""
        self.state, self._last = self._compiled(self.state, self.batch, self._key)

    def forward(self) -> None:
        """The logits under fixed weights and running statistics."""
        self._last = self._forward(self._variables, self.batch)

    def wait(self) -> None:
        """Returns when the device has done all it was given."""
        import jax

        jax.block_until_ready((self.state, self._last))

    def scanned(self, count: int) -> Callable[[], None]:
        """`count` steps in one program, by lax.scan."""
        import jax

        def steps(state: Any, batch: Any, key: Any) -> Any:
            return jax.lax.scan(lambda state, _: self.step(state, batch, key), state, length=count)

        scan: Any = self._parallel.compile(steps, sharded={}, donate=(0,))
        compiled = scan.lower(self.state, self.batch, self._key).compile()

        def call() -> None:
            self.state, self._last = compiled(self.state, self.batch, self._key)

        return call

    def straight(self, count: int) -> Callable[[], None]:
        """`count` calls of the step."""

        def call() -> None:
            for _ in range(count):
                self.train()

        return call


def _class_of(model_class: Any) -> Any:
    return model_class.func if isinstance(model_class, partial) else model_class


def random_batch(case: Case, size: int) -> dict[str, Any]:
    """The same for every side."""
    import numpy as np

    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (size, *case.image_shape), np.uint8),
        "label": generator.integers(0, case.num_classes, size).astype(np.int32),
    }


def torch_side(
    case: Case, size: int, precision: str, what: str, compiled: bool
) -> tuple[Callable[[], float], dict[str, Any]]:
    """PyTorch's measurement of a case, and the seconds of its first call."""
    from benchmarks import torch_peers
    from benchmarks.measure import set_up_torch

    set_up_torch()
    model, batch = torch_peers.make(case.model, case.num_classes, stem=case.stem), random_batch(case, size)
    side = torch_peers.Step(model, batch["image"], batch["label"], precision=precision, compiled=compiled)
    call = getattr(side, what)
    first_call = torch_peers.first_call_seconds(call)
    return timed(call, torch_peers.synchronise), {"first_call_seconds": first_call}


def measure(case: Case, precision: str, options: Any, table: Table, report: Report) -> Any:
    """Prints a case's rows; returns the ratio of the training step to PyTorch's (eager, compiled)."""
    others = Others()
    size = options.batch or (case.gpu_batch if on_gpu() else case.cpu_batch)
    batch = random_batch(case, size)
    ours = OurStep(case, batch, precision=precision, convolution=options.convolution)
    compile_seconds = {"ours": ours.compile()}
    wanted = [] if not has_torch() else ["eager"] if options.no_compile else ["eager", "compiled"]
    ratios = {}
    for what in ("train", "forward") if options.forward else ("train",):
        calls = {"ours": timed(getattr(ours, what), ours.wait)}
        failed, elsewhere = {}, []
        for name in wanted:
            try:
                elsewhere.append(Elsewhere(torch_side, case, size, precision, what, name == "compiled"))
            except RuntimeError as error:
                failed[name] = str(error)
                continue
            calls[name] = elsewhere[-1]
            if name == "compiled" and what == "train":
                compile_seconds[name] = elsewhere[-1].facts["first_call_seconds"]
        found = in_turn(calls, options.repeats)
        for side in elsewhere:
            side.close()
        against = {name: ratio(found, "ours", name) for name in ("eager", "compiled")}
        best = min(found["ours"])
        rate = ours.gigaflops() / best if what == "train" else None
        absent = {name: failed.get(name, NOT_INSTALLED if not has_torch() else "-") for name in against}
        table.row(
            f"{case.model} {what}",
            size,
            precision,
            *(milliseconds(found[name]) if name in found else absent[name] for name in ("ours", "eager", "compiled")),
            *(str(against[name]) if against[name] else "" for name in against),
            f"{rate:.0f}" if rate else "",
            f"{compile_seconds['ours']:.1f}" if what == "train" else "",
            f"{compile_seconds['compiled']:.1f}" if what == "train" and "compiled" in compile_seconds else "",
        )
        report.add(
            model=case.model, what=what, batch=size, precision=precision, num_params=ours.num_params, seconds=found,
            ratio=against, gigaflops=ours.gigaflops(), failed=failed, compile_seconds=compile_seconds,
            others_cpu_share=others.share(),
        )  # fmt: skip
        if what == "train":
            ratios = against
    if options.scan:
        calls = {"scan": timed(ours.scanned(options.scan), ours.wait, at_least=0.2)}
        calls["straight"] = timed(ours.straight(options.scan), ours.wait, at_least=0.2)
        found = in_turn(calls, options.repeats)
        against_straight = ratio(found, "scan", "straight")
        say(
            f"{case.model}: {options.scan} steps by lax.scan {milliseconds(found['scan'])} ms, one call each "
            f"{milliseconds(found['straight'])} ms: {against_straight}"
        )
        report.add(model=case.model, what="scan", steps=options.scan, batch=size, precision=precision, seconds=found,
                   ratio={"straight": against_straight})  # fmt: skip
    if options.profile:
        profile = dearest_operations(ours)
        total = sum(profile.values())
        for name, seconds in profile.most_common(options.profile):
            say(f"  {100 * seconds / total:5.1f} %  {1000 * seconds:9.3f} ms  {name}")
        report.add(model=case.model, what="profile", batch=size, precision=precision,
                   seconds=dict(profile.most_common(40)))  # fmt: skip
    return ratios


def dearest_operations(ours: OurStep, count: int = 3) -> Counter[str]:
    """Seconds a step in each operation of XLA, over all threads or streams, from JAX's profiler."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        ours.wait()
        with jax.profiler.trace(folder):
            for _ in range(count):
                ours.train()
            ours.wait()
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        found: Counter[str] = Counter()
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    operation = dict(event.stats).get("hlo_op")
                    if operation is not None:
                        found[str(operation)] += event.duration_ns / 1e9 / count
    return found


def main() -> None:
    parser = make_parser(__doc__, repeats=7)
    parser.add_argument("--models", help=f"comma-separated, of {', '.join(case.model for case in CASES)}; or zoo")
    parser.add_argument("--batch", type=int, help="of every model (default: by model and device)")
    parser.add_argument("--precisions", help="comma-separated, of f32, bf16, fp16 (default: f32; on a GPU bf16)")
    parser.add_argument("--forward", action="store_true", help="rows of the forward pass alone, too")
    parser.add_argument("--scan", type=int, default=0, help="this many steps by lax.scan against one call each")
    parser.add_argument("--convolution", default="auto", help="ours on CPUs: auto, onednn, products, xla")
    parser.add_argument("--no_compile", action="store_true", help="without PyTorch's compiled side")
    parser.add_argument("--profile", type=int, nargs="?", const=15, default=0, help="our dearest operations, so many")
    options = parser.parse_args()
    set_up(options, compilation_cache=False, torch_here=False)
    from jaxcnn.models import MODELS

    report = Report(options.json, "step")
    place = "zoo" if options.models == "zoo" else "gpu" if on_gpu() else "cpu"
    by_place = [case.model for case in CASES if place in case.where]
    wanted = options.models.split(",") if options.models not in (None, "zoo") else by_place
    unknown = set(wanted) - {case.model for case in CASES}
    if unknown:
        raise SystemExit(f"--models: {', '.join(sorted(unknown))} is not among {', '.join(c.model for c in CASES)}")
    others = Others()
    table = Table(
        model=24, batch=5, type=4, ours_ms=13, eager_ms=13, compiled_ms=13, ours_by_eager=17, ours_by_compiled=17,
        GFLOP_by_s=11, compile_s=9, torch_s=8,
    )  # fmt: skip
    ratios: dict[str, list[float]] = {"eager": [], "compiled": []}
    for precision in (options.precisions or ("bf16" if on_gpu() else "f32")).split(","):
        for case in (case for name in wanted for case in CASES if case.model == name):
            if case.model not in MODELS:
                say(f"{case.model}: skipped, jaxcnn has no such model yet")
                continue
            for name, value in measure(case, precision, options, table, report).items():
                if value:
                    ratios[name].append(value.median)
    for name, values in ratios.items():
        if values:
            say(f"geometric mean, ours / PyTorch {name}, of {len(values)}: {geometric_mean(values):.3f}")
            report.set(f"geometric_mean_{name}", geometric_mean(values))
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
