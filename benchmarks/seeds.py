"""Several seeds of a small network in one process: python -m benchmarks.seeds [--seeds 4] [--models cnn]

A step of each seed, three ways: one call a seed; one program with all seeds written out; one program that vmaps over
the seeds' stacked states. Says which is fastest here. Compiling is apart.
"""

import time
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
    ratio,
    say,
    set_up,
    timed,
)
from benchmarks.step import CASES, Case, OurStep, random_batch

SMALL = {"cnn": Case("cnn", (28, 28, 1), 64, 128)} | {case.model: case for case in CASES}


class Seeds:
    """The states of `count` seeds of one model, and a step of all of them by each of the three ways."""

    def __init__(self, case: Case, batch: dict[str, Any], *, count: int, precision: str):
        import jax
        import jax.numpy as jnp

        ours = OurStep(case, batch, precision=precision)
        self._batch, self._last = ours.batch, None
        self._keys = [jax.random.key(seed) for seed in range(count)]
        states = [ours.init(key) for key in self._keys]
        stack = lambda trees: jax.tree.map(lambda *each: jnp.stack(each), *trees)
        copy = lambda tree: jax.tree.map(jnp.copy, tree)
        self._states = {"one call each": [copy(s) for s in states], "written out": states, "vmap": stack(states)}
        keys = jnp.stack(self._keys)

        def written_out(states: Any, batch: Any, keys: Any) -> Any:
            return [ours.step(state, batch, key)[0] for state, key in zip(states, keys, strict=True)]

        def vmapped(states: Any, batch: Any, keys: Any) -> Any:
            return jax.vmap(lambda state, key: ours.step(state, batch, key)[0])(states, keys)

        one = lambda state, batch, key: ours.step(state, batch, key)[0]
        self.compile_seconds: dict[str, float] = {}
        arguments = {
            "one call each": (one, self._states["one call each"][0], self._keys[0]),
            "written out": (written_out, self._states["written out"], self._keys),
            "vmap": (vmapped, self._states["vmap"], keys),
        }
        programs = {}
        for name, (function, state, key) in arguments.items():
            start = time.perf_counter()
            programs[name] = jax.jit(function, donate_argnums=0).lower(state, self._batch, key).compile()
            self.compile_seconds[name] = time.perf_counter() - start

        def call_each() -> None:
            program = programs["one call each"]
            self._states["one call each"] = [
                program(state, self._batch, key)
                for state, key in zip(self._states["one call each"], self._keys, strict=True)
            ]

        def call(name: str, key: Any) -> Any:
            def step() -> None:
                self._states[name] = programs[name](self._states[name], self._batch, key)

            return step

        self.calls = {
            "one call each": call_each, "written out": call("written out", self._keys), "vmap": call("vmap", keys),
        }  # fmt: skip

    def wait(self) -> None:
        import jax

        jax.block_until_ready(self._states)


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--seeds", type=int, help="how many (default: 4; on a GPU 8)")
    parser.add_argument("--models", default="cnn", help=f"comma-separated, of {', '.join(SMALL)}")
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    set_up(options, compilation_cache=False)
    count = options.seeds or (8 if on_gpu() else 4)
    report, others = Report(options.json, "seeds"), Others()
    table = Table(model=14, seeds=6, batch=6, one_call_each_ms=17, written_out_ms=15, vmap_ms=15, written_out_ratio=19,
                  vmap_ratio=19)  # fmt: skip
    for name in options.models.split(","):
        if name not in SMALL:
            raise SystemExit(f"--models: {name} is not among {', '.join(SMALL)}")
        case = SMALL[name]
        size = options.batch or (case.gpu_batch if on_gpu() else case.cpu_batch)
        seeds = Seeds(case, random_batch(case, size), count=count, precision="bf16" if on_gpu() else "f32")
        found = in_turn({way: timed(call, seeds.wait) for way, call in seeds.calls.items()}, options.repeats)
        ratios = {way: ratio(found, way, "one call each") for way in ("written out", "vmap")}
        table.row(name, count, size, *map(milliseconds, found.values()), *map(str, ratios.values()))
        fastest = min(found, key=lambda way: sorted(found[way])[options.repeats // 2])
        say(f"fastest for {name}: {fastest}")
        report.add(model=name, seeds=count, batch=size, seconds=found, ratio=ratios, fastest=fastest,
                   compile_seconds=seeds.compile_seconds, others_cpu_share=others.share())  # fmt: skip
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
