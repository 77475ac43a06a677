#!/usr/bin/env bash
# The benchmarks on a machine with a GPU, JAX and perhaps PyTorch, but without a network.
#   benchmarks/gpu.sh pack FOLDER [ARGS…]   here: what that machine lacks (wheels, CIFAR-10), into FOLDER, with the sizes; ARGS
#                                           go to benchmarks.pack: --python 3.12, --leave_out tensorstore, --images 200
#   benchmarks/gpu.sh run FOLDER [--out DIR] [--minutes 8] [ARGS…]   there: the most telling rows first, within the minutes,
#                                           written to DIR after each; ARGS go to benchmarks.all, e.g. --smallest
# Both from the project's files; PYTHON names the interpreter (pack: .venv's; run: python3).
set -euo pipefail
shopt -s nullglob

fail() { echo "gpu.sh: $1" >&2; exit 2; }

pack() {                                      # pack FOLDER ARG…
  exec "${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}" -m benchmarks.pack "$@"
}

install() {                                   # install FOLDER PLACE: of the wheels, what the machine lacks
  local python="${PYTHON:-python3}" folder="$1" place="$2" wanted found installers
  found="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" || fail "no $python here; set PYTHON"
  wanted="$(cat "$folder/python")"
  [ "$found" = "$wanted" ] || fail "$folder was packed for Python $wanted, this is $found; pack again with --python $found"
  "$python" -m venv --system-site-packages --without-pip "$place/venv" || fail "$python has no venv"
  # A venv of a venv sees the system's packages, not those of the one it was made from.
  "$python" -c 'import site, sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))' \
    > "$(echo "$place"/venv/lib/python*/site-packages)/machine.pth"
  installers=("$folder"/wheels/pip-*.whl)
  PYTHONPATH="${installers[0]}" "$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \
    --no-compile --no-deps --find-links "$folder/wheels" --requirement "$folder/requirements.txt" || fail "the wheels do not install"
}

run() {                                       # run FOLDER [--out DIR] [--minutes N] ARG…
  local folder="$1" out=runs/gpu minutes=8 rest=() seconds data=()
  shift
  while [ $# -gt 0 ]; do
    case "$1" in
      --out) out="${2:?gpu.sh: --out needs a folder}"; shift 2 ;;
      --minutes) minutes="${2:?gpu.sh: --minutes needs a number}"; shift 2 ;;
      *) rest+=("$1"); shift ;;
    esac
  done
  [[ "$minutes" =~ ^[1-9][0-9]*$ ]] || fail "--minutes=$minutes is no whole number"
  [ -e "$folder/requirements.txt" ] || fail "$folder is not what 'benchmarks/gpu.sh pack' makes"
  place="$(mktemp -d)"                        # not local: the trap runs when the function has ended
  trap 'rm -rf "$place"' EXIT
  install "$folder" "$place"
  PATH="$place/venv/bin:$PATH"
  if python -m benchmarks.pack "$folder" --unpack "$place/cifar10.npz"; then
    data=(--data "npz:$place/cifar10.npz")
  else
    echo "gpu.sh: CIFAR-10 was not unpacked: the rows that train on it are left out"
  fi
  seconds=$((60 * minutes - SECONDS))
  echo "gpu.sh: ready after $SECONDS s"
  python -m benchmarks.all --short ${data[@]+"${data[@]}"} --out "$out" \
    --minutes "$(printf '%d.%02d' $((seconds / 60)) $((seconds % 60 * 100 / 60)))" ${rest[@]+"${rest[@]}"}
}

case "${1:-}" in
  pack) [ $# -ge 2 ] || fail "pack needs a folder"; shift; cd "$(dirname "${BASH_SOURCE[0]}")/.."; pack "$@" ;;
  run) [ $# -ge 2 ] || fail "run needs the folder that pack made"; shift; cd "$(dirname "${BASH_SOURCE[0]}")/.."; run "$@" ;;
  *) fail "use: benchmarks/gpu.sh pack FOLDER, or benchmarks/gpu.sh run FOLDER [--out DIR] [--minutes 8]" ;;
esac
