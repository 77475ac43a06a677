"""What telemetry costs a run, in one process: python -m benchmarks.telemetry [--every 20] [--repeats 5]

In turn: the loop with TensorBoard and telemetry every so many steps, the first of which compiles and is not counted,
and the same loop without telemetry. Prints medians; what one row costs, in steps: its forward and backward pass, the
histograms, and writing them; and what that is of a run's time where the default cadence is densest.
"""

from functools import partial

from benchmarks.measure import Others, Report, Table, begin, in_turn, make_parser, milliseconds, ratio, say, set_up
from benchmarks.overhead import loop_seconds

CASES = {  # name: (experiment, steps, overrides)
    "digits cnn": ("digits.py", 1000, []),
    "mnist lenet5": ("mnist.py", 400, []),
    "cifar10 resnet20": ("cifar10.py", 60, ["--config.model.name=resnet20", "--config.batch_size=32"]),
}


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--every", type=int, default=20, help="steps between two rows: few, so that they are seen")
    parser.add_argument("--cases", default=",".join(CASES), help="some of these (default: all)")
    options = parser.parse_args()
    if unknown := set(options.cases.split(",")) - set(CASES):
        parser.error(f"--cases: {sorted(unknown)} are not known; there are {', '.join(CASES)}")
    set_up(options)
    from absl import flags

    from jaxcnn.config.command_line import load_config
    from jaxcnn.errors import UserError
    from jaxcnn.training.build import TELEMETRY_STEPS, build

    report, others = Report(options.json, "telemetry"), Others()
    table = Table(case=18, with_ms=16, without_ms=16, ratio=20, steps_a_row=12, percent_at_most=16)
    for name in options.cases.split(","):
        experiment, steps, overrides = CASES[name]
        argv = ["", f"--config=experiments/{experiment}", f"--config.num_steps={steps}", *overrides]
        argv += ["--config.eval_every_epochs=1000", "--config.checkpoint.every_epochs=1000"]
        runs = {}
        try:
            for side, every in (("with", options.every), ("without", 0)):
                both = [*argv, f"--config.telemetry.every_steps={every}"]
                runs[side] = build(load_config(both, flag_values=flags.FlagValues())[0])
        except UserError as error:
            say(f"{name:<18}skipped: {error}")
            continue
        found = in_turn({side: partial(loop_seconds, *each, steps) for side, each in runs.items()}, options.repeats)
        against = ratio(found, "with", "without")
        assert against is not None
        cost = options.every * (against.median - 1)
        share = 100 * cost / TELEMETRY_STEPS
        table.row(name, *map(milliseconds, found.values()), str(against), f"{cost:.2f}", f"{share:.2f}")
        report.add(case=name, steps=steps, every=options.every, seconds=found, ratio=against, steps_a_row=cost)
        for _, feed in runs.values():
            feed.close()
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
