#!/bin/bash
# Runs a command on a machine without network, in a copy of the tree, with what tools/offline_bundle.sh brought:
#
#   bash .offline/run.sh python3 -m benchmarks.suite first --out RESULTS
#   bash .offline/run.sh fastpeer train cifar10-resnet18 --amp
#
# python3 is the machine's own, or what PYTHON names; fastpeer is the tree's.
set -euo pipefail

bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(dirname "$bundle")
[ $# -gt 0 ] || { echo "run.sh: which command? such as: fastpeer recipes" >&2; exit 2; }
[ -f "$tree/fastpeer/__init__.py" ] || { echo "run.sh: $bundle must lie in the tree's root" >&2; exit 2; }
cd "$tree"

python=${PYTHON:-python3}
export PYTHONPATH=$tree:$bundle/site PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export FASTPEER_BUNDLE=$bundle FASTPEER_COMMIT=$(cat "$bundle/commit")
# matplotlib, numba and others look for a home to keep things in.
export HOME=${HOME:-${TMPDIR:-/tmp}/fastpeer-home}
mkdir -p "$HOME"
# A crash on the GPU would leave gigabytes.
ulimit -c 0
# The kernels' tests wait for the compiler, a process each.
if "$python" -c 'import xdist' 2>/dev/null; then export PYTEST_ADDOPTS=${PYTEST_ADDOPTS:--n 6}; fi

case $1 in
    fastpeer) shift; exec "$python" -m fastpeer "$@" ;;
    python | python3) shift; exec "$python" "$@" ;;
    *) exec "$@" ;;
esac
