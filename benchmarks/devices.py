"""How far modes and device counts differ: python -m benchmarks.devices [--experiment cifar10.py] [--steps 10]

Trains the same first steps, in float32 without dropout, on 1, 2 and 8 simulated CPU devices (or those there are) under
jit and pmap, and prints the largest relative difference of the loss from that of one device under jit.
"""

import argparse
import json
import os
from pathlib import Path

COUNTS = (1, 2, 8)


def losses(argv: list[str], steps: int) -> list[float]:
    """The loss of each of the first steps."""
    import jax
    from absl import flags

    from jaxcnn.build import build
    from jaxcnn.config import load_config

    config, _ = load_config(["", *argv], flag_values=flags.FlagValues())
    run, feed = build(config)
    parallel = run.parallel
    state, key = parallel.replicate(run.init()), parallel.replicate(jax.random.key(config.seed))
    found = []
    for step in range(steps):
        totals = parallel.replicate(run.metrics.empty())
        state, totals, _ = run.train_call(state, totals, feed.data(), feed.inputs(step, 1), key)
        found.append(float(parallel.unreplicate(totals).compute()["loss"]))
    feed.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiment", default="cifar10.py")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(COUNTS)}"
    from jaxcnn.parallel import set_up

    set_up(None, compilation_cache=True)
    base = [f"--config=experiments/{options.experiment}", "--config.model.dropout_rate=0", "--config.steps_per_call=1"]
    table = {
        f"{mode}, {count}": losses([*base, f"--config.parallel={mode}", f"--config.num_devices={count}"], options.steps)
        for mode in ("jit", "pmap")
        for count in COUNTS
    }
    reference = table["jit, 1"]
    print(f"{'mode, devices':<16}{'loss at step 1':>16}{f'at step {options.steps}':>14}{'largest difference':>21}")
    for name, found in table.items():
        difference = max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))
        print(f"{name:<16}{found[0]:>16.6f}{found[-1]:>14.6f}{difference:>21.1e}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
