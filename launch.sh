#!/usr/bin/env bash
# Sets up .venv and launches, here or on a cluster (docs/clusters.md; each has --help and --dry-run).
#   ./launch.sh [train ARGS…]   train; without ARGS the embedded default, experiments/digits.py
#   ./launch.sh test [ARGS…]    the fast tests (-m slow: the long ones); ARGS go to pytest
#   ./launch.sh check           format, lint and types
#   ./launch.sh setup           the environment alone
#   ./launch.sh local N ARGS…   train, in N processes on this machine
#   ./launch.sh slurm [OPTIONS] ARGS…        as a SLURM job; also: sweep ARGS…, search ARGS…
#   ./launch.sh tpu NAME [OPTIONS] ARGS…     on a Cloud TPU VM
#   ./launch.sh k8s NAME [OPTIONS] ARGS…     on Kubernetes, as a JobSet
# JAXCNN_EXTRAS (e.g. cuda12, cuda13, tpu, onednn, or nothing) overrides what is found on the machine; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python="${PYTHON:-python3}"

check_python() {
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
    { echo "launch.sh: needs Python 3.11 to 3.13; set PYTHON=python3.12 or the like" >&2; exit 2; }
}

setup() {                                     # setup EXTRA…: installs the project and these extras, once
  local extras stamp
  check_python
  extras="${JAXCNN_EXTRAS-$(accelerator)}"
  for extra in "$@"; do extras="${extras:+$extras,}$extra"; done
  stamp="$(cat pyproject.toml ${PIP_CONSTRAINT:+.ci/constraints.txt} <("$python" --version) | cksum | tr ' ' '-')"
  for extra in ${extras//,/ }; do [ -e ".venv/installed-$stamp-$extra" ] || local missing=1; done
  [ -e ".venv/installed-$stamp" ] && [ -z "${missing:-}" ] && return
  echo "installing into .venv: jaxcnn${extras:+[$extras]} (about a minute)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
  touch ".venv/installed-$stamp"
  for extra in ${extras//,/ }; do touch ".venv/installed-$stamp-$extra"; done
}

accelerator() {                               # the extra for this machine: of its GPU or TPU, or of an x86-64 CPU
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    case "$(nvidia-smi)" in *'CUDA Version: 1'[3-9]*) echo cuda13 ;; *) echo cuda12 ;; esac
  elif compgen -G "/dev/accel*" >/dev/null; then echo tpu
  elif compgen -G "/dev/vfio/[0-9]*" >/dev/null && grep -qs Google /sys/class/dmi/id/product_name; then echo tpu
  elif [ "$(uname -sm)" = "Linux x86_64" ]; then echo onednn; fi
}

train() {
  setup
  case " $*" in *" --config"[=\ ]*) ;; *) set -- --config=experiments/digits.py "$@" ;; esac
  exec .venv/bin/python -m jaxcnn.main "$@"
}

case "${1:-train}" in
  train) shift || true; train "$@" ;;
  --*)   train "$@" ;;
  test)  shift; setup test; exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@" ;;
  check) setup dev; .venv/bin/ruff format --check . && .venv/bin/ruff check . && exec .venv/bin/mypy ;;
  setup) setup ;;
  local) setup; exec .venv/bin/python -m jaxcnn.launch "$@" ;;
  slurm|tpu|k8s) check_python; exec "$python" -m jaxcnn.launch "$@" ;;  # nothing need be installed here
  *)     echo "launch.sh: unknown command '$1'; one of: train, test, check, setup, local, slurm, tpu, k8s" >&2; exit 2 ;;
esac
