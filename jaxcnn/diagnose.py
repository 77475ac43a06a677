"""Says in words what is wrong with a run: python -m jaxcnn.diagnose --workdir DIR [--json FILE]

Reads the run's folder alone, also while it trains. Exit codes: 0 whatever it finds, 2 the command is wrong.
"""

import dataclasses

from absl import flags

from jaxcnn.command import HELP_FLAGS, check_outputs, flags_help, parse_flags, run_command, show_help
from jaxcnn.errors import UserError
from jaxcnn.files import to_json, write_atomically
from jaxcnn.results.diagnosis import diagnose
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.facts import read_facts
from jaxcnn.terminal import PatientConsole

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan", "not examined": "dim"}


def main(argv: list[str], start: float) -> int:
    """Reads, diagnoses, prints; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("json", None, "write the findings there too", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    parse_flags(values, argv, takes_arguments=False)
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    check_outputs(values, "json")
    findings = diagnose(read_facts(workdir_lib.resolve(values.workdir)))
    wrong = [finding for finding in findings if finding.severity != "not examined"]
    console = PatientConsole(soft_wrap=True)
    console.print(f"{values.workdir}: {len(wrong) or 'nothing'} found", style="bold")
    for each in findings:
        console.print(f"\n{each.severity}: {each.name}", style=_STYLES[each.severity])
        console.print(f"  {each.sentence}")
        for remedy in each.remedies:
            console.print(f"    {remedy}")
    if values.json:
        text = to_json([dataclasses.asdict(each) for each in findings], indent=2)
        write_atomically(values.json, text + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
