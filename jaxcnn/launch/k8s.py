"""Runs a training on Kubernetes, as a JobSet: launch.sh k8s NAME --image I [--nodes N --gpus G …] --config FILE …

A pod a node, one process each; where one fails all begin again from the last checkpoint. Needs kubectl, and JobSet in
the cluster. launch.sh k8s NAME logs shows process 0; delete saves and ends the run.
"""

import re
from typing import Any

from jaxcnn.errors import UserError
from jaxcnn.launch.arguments import COUNT, DRY_RUN, NAME, NUMBER, Command, Option, command_of, parse
from jaxcnn.launch.system import call, need, quoted, tell, to_json

OPTIONS = {
    "image": Option(
        "container image with the project: docs/clusters.md builds it", "", "[A-Za-z0-9][A-Za-z0-9._/:@-]{0,400}",
        "an image",
    ),
    "nodes": Option("pods, one a node", "1", NUMBER),
    "gpus": Option("GPUs of each pod; 0: CPUs, or TPUs", "0", COUNT),
    "tpu": Option("GKE's name of TPUs, as tpu-v5-lite-podslice", "", NAME),
    "topology": Option("of the TPUs, as 2x4", "", "[1-9][0-9]*(x[1-9][0-9]*){1,2}", "a topology, such as 2x4"),
    "chips": Option("TPU chips of each pod", "4", NUMBER),
    "cpus": Option("cores that a pod asks for; none: what there is", "", NUMBER),
    "memory": Option(
        "memory that a pod asks for, as 64Gi; none: what there is", "", "[1-9][0-9]*[MGT]i", "a size, such as 64Gi",
    ),
    "claim": Option("persistent volume claim that all pods mount at /runs", "", NAME),
    "account": Option("service account, which may write to the bucket", "", NAME),
    "namespace": Option("namespace; none: kubectl's", "", NAME),
    "restarts": Option("times that all begin again; a preemption counts", "20", COUNT),
    "dry-run": DRY_RUN,
}  # fmt: skip
PORT = 8476  # of process 0
USER = 10001  # the Dockerfile's
GRACE_SECONDS = 120  # from a pod's SIGTERM to its end: to save
_JOBSET_NAME = "[a-z]([a-z0-9-]{0,38}[a-z0-9])?"  # with what JobSet adds, a host's name


def launch(argv: list[str]) -> int:
    """Makes the JobSet; `logs` and `delete` look at it and end it."""
    name, *rest = argv or [""]
    if not re.fullmatch(_JOBSET_NAME, name):
        raise UserError(f"k8s {name[:50]!r}: give the run's name first: at most 40 small letters, digits and '-'")
    values, words = parse(rest, OPTIONS)
    kubectl = ["kubectl", *([f"--namespace={values['namespace']}"] if values["namespace"] else [])]
    first = f"jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0"
    text = None
    if words == ["logs"]:
        kubectl += ["logs", "--follow", "--tail=100", f"--selector={first}"]
    elif words == ["delete"]:
        kubectl += ["delete", "jobset", name]
    else:
        command = command_of(words, OPTIONS, "train")
        _check(values, command)
        kubectl += ["create", "--filename=-"]  # apply would leave a run that has ended as it is
        text = to_json(manifest(name, values, command))
    if values["dry-run"]:
        tell((f"{text}\n\n" if text else "") + quoted(kubectl))
        return 0
    need("kubectl", "install it, or look with --dry-run")
    code = call(kubectl, given=text)
    if text and not code:
        tell(f"look: launch.sh k8s {name} logs    save and end: launch.sh k8s {name} delete")
    return 1 if code else 0


def _check(values: dict[str, str], command: Command) -> None:
    """Raises UserError where it could not run."""
    if not values["image"]:
        raise UserError("no image given; pass --image=REGISTRY/NAME:TAG, as docs/clusters.md builds it")
    if bool(values["tpu"]) != bool(values["topology"]):
        raise UserError("--tpu and --topology go together, as --tpu=tpu-v5-lite-podslice --topology=2x4")
    if values["tpu"] and values["gpus"] != "0":
        raise UserError("--gpus and --tpu: a pod has one or the other; leave one out")
    folder = command.workdir or ""
    if values["claim"] and not re.match("gs://|/runs/", folder):
        raise UserError(f"--claim={values['claim']} is mounted at /runs: pass --workdir=/runs/NAME")
    if not values["claim"] and not folder.startswith("gs://"):
        raise UserError(
            "a pod's disk goes with it: pass --workdir=gs://BUCKET/NAME, or --claim and --workdir=/runs/NAME"
        )


def manifest(name: str, values: dict[str, str], command: Command) -> dict[str, Any]:
    """The JobSet: one Job of indexed pods, which all begin again together."""
    number = int(values["nodes"])
    job = {
        "completionMode": "Indexed",
        "parallelism": number,
        "completions": number,
        "backoffLimit": 0,
        "podFailurePolicy": {  # what is wrong with the command or the data would be so again
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "jaxcnn", "operator": "In", "values": [1, 2]},
                }
            ]
        },
        "template": {"spec": _pod(name, values, command)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": {
                "maxRestarts": int(values["restarts"]),
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(name: str, values: dict[str, str], command: Command) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # NCCL needs more than 64 MB
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "volumes": volumes,
    }
    if values["claim"]:
        pod["securityContext"] = {"fsGroup": USER}
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": values["claim"]}})
        mounts.append({"name": "runs", "mountPath": "/runs"})
    asked = {each: values[option] for each, option in (("cpu", "cpus"), ("memory", "memory")) if values[option]}
    devices = {"nvidia.com/gpu": values["gpus"]} if values["gpus"] != "0" else {}
    devices |= {"google.com/tpu": values["chips"]} if values["tpu"] else {}
    platform = "tpu" if values["tpu"] else "cuda" if devices else "cpu"  # an error where the pod does not have it
    pod["containers"] = [
        {
            "name": "jaxcnn",
            "image": values["image"],
            "command": ["python", *(word.replace("$(", "$$(") for word in command.words)],  # else a variable is put in
            "env": [{"name": "JAX_PLATFORMS", "value": platform}, *_contract(name, int(values["nodes"]))],
            "resources": {"requests": asked | devices, "limits": devices},
            "volumeMounts": mounts,
        }
    ]
    if values["tpu"]:
        pod["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": values["tpu"],
            "cloud.google.com/gke-tpu-topology": values["topology"],
        }
    if values["account"]:
        pod["serviceAccountName"] = values["account"]
    return pod


def _contract(name: str, number: int) -> list[dict[str, Any]]:
    """What jaxcnn/hosts/environment.py reads; a pod's number is an annotation that Kubernetes gives it."""
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [
        {"name": "JAXCNN_COORDINATOR", "value": f"{name}-workers-0-0.{name}:{PORT}"},
        {"name": "JAXCNN_NUM_PROCESSES", "value": str(number)},
        {"name": "JAXCNN_PROCESS_ID", "valueFrom": index},
    ]
