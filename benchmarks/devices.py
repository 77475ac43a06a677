"""How far modes and device counts differ: python -m benchmarks.devices [--experiment cifar10.py] [--steps 10]

Trains the same first steps, in float32, on 1, 2 and 8 simulated CPU devices (or those there are) under
jit and pmap, and prints the largest relative difference of the loss from that of one device under jit.
"""

import os

from benchmarks.measure import Report, Table, begin, make_parser, set_up

COUNTS = (1, 2, 8)


def losses(argv: list[str], steps: int) -> list[float]:
    """The loss of each of the first steps."""
    import jax
    from absl import flags

    from jaxcnn.config.command_line import load_config
    from jaxcnn.training.build import build

    config, _ = load_config(["", *argv], flag_values=flags.FlagValues())
    run, feed = build(config)
    parallel = run.parallel
    state, key = parallel.replicate(run.init()), parallel.replicate(jax.random.key(config.seed))
    found = []
    for step in range(steps):
        totals = parallel.replicate(run.learning.metrics.empty())
        state, totals, _ = run.calls.train_call(state, totals, feed.data(), feed.inputs(step, 1), key)
        found.append(float(parallel.unreplicate(totals).compute()["loss"]))
    feed.close()
    return found


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--experiment", default="cifar10.py")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(COUNTS)}"
    set_up(options)
    report = Report(options.json, "devices")
    base = [f"--config=experiments/{options.experiment}", "--config.steps_per_call=1"]
    found = {
        f"{mode}, {count}": losses([*base, f"--config.parallel={mode}", f"--config.num_devices={count}"], options.steps)
        for mode in ("jit", "pmap")
        for count in COUNTS
    }
    reference = found["jit, 1"]
    table = Table(mode_and_devices=18, loss_at_step_1=16, at_the_last=14, largest_difference=20)
    for name, values in found.items():
        difference = max(abs(a - b) / abs(b) for a, b in zip(values, reference, strict=True))
        table.row(name, f"{values[0]:.6f}", f"{values[-1]:.6f}", f"{difference:.1e}")
        report.add(mode_and_devices=name, losses=values, largest_difference=difference)
    report.finish()


if __name__ == "__main__":
    begin(main)
