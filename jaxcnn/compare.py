"""What a study's runs show: python -m jaxcnn.compare STUDY [--metric M] [--split S] [--base VARIANT] [--sort] …

STUDY is the folder of a study; or folders of runs, of which those that differ in their seeds alone are one variant.
Prints a table with uncertainty and what may be said; writes study.json, study.csv, study.md and study.tex into the
study's folder, or --output. Measures nothing anew: each run's summary has its scores. docs/ablations.md has the words.
"""

from absl import flags
from etils import epath

from jaxcnn.ablation.results import Asked, read_runs, read_study
from jaxcnn.ablation.study import PLAN
from jaxcnn.command import HELP_FLAGS, check_outputs, flags_help, parse_flags, run_command, show_help
from jaxcnn.errors import UserError, nearest
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import PatientConsole

SPLITS = ("test", "validation")


def main(argv: list[str], start: float) -> int:
    """Reads, compares, prints, writes; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("metric", None, "what is compared; none: the study's own", flag_values=values)
    flags.DEFINE_string("split", None, "test or validation; none: the study's own", flag_values=values)
    flags.DEFINE_string("base", None, "the variant that others are compared with; none: the first", flag_values=values)
    flags.DEFINE_bool("sort", False, "the best variant first, after the base", flag_values=values)
    flags.DEFINE_multi_string(
        "predictions", None, "a variant; given twice: where its networks and the other's disagree", flag_values=values
    )
    flags.DEFINE_bool("no_write", False, "print alone: no study.json, no tables", flag_values=values)
    flags.DEFINE_string("output", None, "folder of the files; the study's", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    given = parse_flags(values, argv)
    folders = _check(values, given)
    console = PatientConsole()
    asked = Asked(values.metric, values.split, values.base)
    is_study = (folders[0] / PLAN).exists()
    results = read_study(folders[0], asked) if is_study else read_runs(dict(zip(given, folders, strict=True)), asked)

    from jaxcnn.ablation import tables

    names = tables.order(results, by_mean=values.sort)
    tables.show(results, names, console)
    if values.predictions:
        from jaxcnn.ablation.disagreement import disagreements, in_words

        for line in in_words(disagreements(results, *values.predictions), *values.predictions):
            console.print(line)
    output = workdir_lib.resolve(values.output) if values.output else folders[0] if is_study else None
    if not values.no_write and output is not None:
        tables.write(results, names, output)
        console.print(f"study.json, study.csv, study.md and study.tex are in {output}", soft_wrap=True)
    return 0


def _check(values: flags.FlagValues, given: list[str]) -> list[epath.Path]:
    """The folders. Raises UserError; nothing is read."""
    if not given or not all(given):
        raise UserError("no study given; pass its folder, e.g. runs/study, or folders of runs")
    if values.split not in (None, *SPLITS):
        raise UserError(f"--split={values.split} is not known; {nearest(values.split, SPLITS)}")
    if values.predictions and len(values.predictions) != 2:
        raise UserError("--predictions names one of two variants; give it twice: --predictions=A --predictions=B")
    if values.predictions and values.predictions[0] == values.predictions[1]:
        raise UserError(f"--predictions names {values.predictions[0]!r} twice; name two variants")
    if values.output is not None and values.no_write:
        raise UserError("--no_write writes nothing into --output; leave one of them out")
    folders = [workdir_lib.resolve(each) for each in given]
    if len(set(folders)) < len(folders):
        again = next(name for name, folder in zip(given, folders, strict=True) if folders.count(folder) > 1)
        raise UserError(f"{again} is given twice; name each folder once")
    for name, folder in zip(given, folders, strict=True):
        if not folder.is_dir():
            raise UserError(f"{name} is no folder; pass a study's, e.g. runs/study, or folders of runs")
        if (folder / PLAN).exists() and len(folders) > 1:
            raise UserError(f"{name} holds a study, which is compared alone; leave the other folders out")
        if not (folder / PLAN).exists() and not (folder / "config.json").exists():
            raise UserError(f"{name} holds neither a study (no {PLAN}) nor a run (no config.json)")
    if values.output is not None:
        check_outputs(values, "output", folder=True)
    return folders


if __name__ == "__main__":
    run_command(main)
