"""Submits a SLURM job: launch.sh slurm [--nodes N --gpus G --time T …] [train|sweep|search] --config FILE …

The job is asked to save before its time ends and is queued again, as after a preemption or a process's death. Its
script and log are in launch/ of the run's folder. All nodes must see that folder, and the project's.
"""

import shlex

from jaxcnn.errors import RunError, UserError
from jaxcnn.launch.arguments import COUNT, DRY_RUN, NAME, NUMBER, Command, Option, command_of, parse
from jaxcnn.launch.system import ROOT, ask, make_folder, need, quoted, tell, write

OPTIONS = {
    "nodes": Option("nodes", "1", NUMBER),
    "gpus": Option("GPUs of each node; 0: CPUs", "0", COUNT),
    # JAX drives all GPUs of a node from one process: one compilation, one copy of a set in memory, one reader.
    "process-per": Option(
        "node, or gpu: where one process cannot decode images fast enough for all GPUs", "node", "node|gpu",
        "node or gpu",
    ),
    "cpus": Option("cores of each process, which decode images", "8", NUMBER),
    "time": Option("most of a job's time, as 4:00:00 or 1-12:00:00", "", r"[0-9]+(-[0-9]+)?(:[0-9]{2}){0,2}", "a time"),
    "partition": Option("partitions that it may run in", "", NAME + "(,[A-Za-z0-9._-]+)*", "a partition's name"),
    "array": Option(
        "for sweep and search: so many jobs that share the work, as 8, or 8%4 for four at once", "",
        "[1-9][0-9]{0,3}(%[1-9][0-9]{0,3})?", "a number of jobs, such as 8 or 8%4",
    ),
    "name": Option("the job's name", "jaxcnn"),
    "container": Option(
        "image that Apptainer runs it in, with Python and the project's packages", "", r"[^\0\n]+", "an image"
    ),
    "warn": Option("seconds before the end of its time at which it saves", "120", NUMBER),
    "requeues": Option("times that it is queued again", "50", COUNT),
    "sbatch": Option("more options of sbatch, as '--account=lab --mem=64G'", "", r"[^\0\n]+", "one line of options"),
    "dry-run": DRY_RUN,
}  # fmt: skip


def launch(argv: list[str]) -> int:
    """Writes the script and submits it."""
    values, words = parse(argv, OPTIONS)
    command = command_of(words, OPTIONS, "train", "sweep", "search")
    _check(values, command)
    text = script(values, command)
    file = command.logs / "slurm.sh"
    # %: sbatch's own letters, %A_%a for a job of an array
    log = str(command.logs).replace("%", "%%") + ("/%A_%a.out" if values["array"] else "/%j.out")
    submit = ["sbatch", "--parsable", f"--chdir={ROOT}", f"--output={log}", *shlex.split(values["sbatch"]), str(file)]
    if values["dry-run"]:
        tell(f"{text}\n# {file}\n{quoted(submit)}")
        return 0
    need("sbatch", "launch from a node of the cluster, or look with --dry-run")
    make_folder(command.logs)
    write(file, text)
    code, job, errors = ask(submit)
    if code:
        raise RunError(f"sbatch refused the job: {errors or job}")
    number = job.partition(";")[0]
    tell(f"job {number} is queued; it writes to {log.replace('%j', number).replace('%A', number).replace('%%', '%')}")
    tell(f"look: squeue -j {number}    save, and go on later: scancel --signal=TERM {number}    end: scancel {number}")
    return 0


def _check(values: dict[str, str], command: Command) -> None:
    """Raises UserError for options that do not go together."""
    if values["array"] and command.name == "train":
        raise UserError("--array is for sweep and search; a training takes more nodes: --nodes=N")
    if command.name != "train" and (values["nodes"] != "1" or values["process-per"] == "gpu"):
        raise UserError(f"{command.name} is one process a job; pass --array=N for N jobs that share the work")
    if values["process-per"] == "gpu" and values["gpus"] == "0":
        raise UserError("--process-per=gpu without GPUs; pass --gpus=N, the number in each node")
    try:
        more = shlex.split(values["sbatch"])
    except ValueError as error:
        raise UserError(f"--sbatch={values['sbatch'][:80]}: {error}") from None
    if any(not each.startswith("-") for each in more):
        raise UserError("--sbatch takes options with their values by '=', as '--account=lab --mem=64G'")


def script(values: dict[str, str], command: Command) -> str:
    """The batch script, whole."""
    run = [f"srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task={values['cpus']}", *_run(values, command)]
    return SCRIPT.format(
        settings="\n".join(f"#SBATCH {each}" for each in _settings(values)),
        setup="" if values["container"] else "flock launch.sh ./launch.sh setup || exit  # one job at a time\n",
        run=" \\\n  ".join(run),
        requeues=values["requeues"],
    )


def _settings(values: dict[str, str]) -> list[str]:
    gpus = int(values["gpus"])
    processes = gpus if values["process-per"] == "gpu" else 1
    found = [f"--job-name={values['name']}", f"--nodes={values['nodes']}", f"--ntasks-per-node={processes}"]
    found += [f"--cpus-per-task={values['cpus']}"]
    found += [f"--gpus-per-node={gpus}"] if gpus else []
    found += [f"--{name}={values[name]}" for name in ("time", "partition") if values[name]]
    if values["array"]:
        number, percent, most = values["array"].partition("%")
        found.append(f"--array=0-{int(number) - 1}{percent}{most}")
    return [*found, f"--signal=TERM@{values['warn']}", "--requeue", "--open-mode=append"]


def _run(values: dict[str, str], command: Command) -> list[str]:
    """What srun begins in each process, a line each."""
    lines = []
    if values["process-per"] == "gpu":
        lines.append("""bash -c 'JAXCNN_LOCAL_DEVICE_IDS=$SLURM_LOCALID exec "$@"' bash""")
    python = ".venv/bin/python"
    if values["container"]:
        nvidia = ["--nv"] if values["gpus"] != "0" else []
        lines.append(quoted(["apptainer", "exec", *nvidia, f"--bind={ROOT}", f"--pwd={ROOT}", values["container"]]))
        python = "python3"
    return [*lines, quoted([python, *command.words])]


SCRIPT = """\
#!/usr/bin/env bash
{settings}
# The signal comes to the processes, not to this script: they save, and leave with 75.
set -u
{setup}{run}
code=$?
# 75: saved, or another process was lost; above 128: a process was killed. Both go on from the last checkpoint.
job=$SLURM_JOB_ID
[ -z "${{SLURM_ARRAY_JOB_ID:-}}" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID  # else all jobs of the array
if [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; then
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
    scontrol requeue "$job" && exit
  else
    echo "jaxcnn: queued again {requeues} times; submit it anew to go on" >&2
  fi
fi
exit "$code"
"""
