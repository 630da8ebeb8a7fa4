#!/bin/sh
# Makes .venv with fastpeer and all it needs. FFCV is compiled, so some system packages come first:
# installed through apt where that is allowed, otherwise named.
set -eu

python=${PYTHON:-python3}
packages="python3-venv python3-dev g++ pkg-config libopencv-dev libturbojpeg0-dev"

complete() {
    command -v g++ >/dev/null && command -v pkg-config >/dev/null &&
        pkg-config --exists opencv4 libturbojpeg &&
        "$python" -c 'import ensurepip, sysconfig, pathlib
assert (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists()' 2>/dev/null
}

if ! complete; then
    if ! command -v apt-get >/dev/null; then
        echo "FFCV needs the packages that Debian calls: $packages. Install their like and run make again." >&2
        exit 1
    elif [ "$(id -u)" = 0 ]; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
    elif sudo -n true 2>/dev/null; then
        sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
    else
        echo "FFCV needs system packages, and apt may not be used without a password. Run this, then make again:" >&2
        echo "  sudo apt-get install $packages" >&2
        exit 1
    fi
fi

"$python" -c 'import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"fastpeer needs Python 3.10 to 3.13, this is {sys.version.split()[0]}: run make PYTHON=python3.12")'
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --upgrade "pip>=25.1"
# setuptools warns of folders that shadow an editable package: kernels/ and data_prep/ are it, not its shadows.
PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[onnx]" --group dev
# Tested with timm's networks too. By itself: the torchvision that it asks for fits few builds of torch, and
# what timm imports of it is for parts that no network here needs (tests/models/timms.py). And last: pip would
# complain of the torchvision that is missing when it installs anything that timm asks for.
.venv/bin/python -m pip install --quiet --constraint constraints.txt --group timm-without-torchvision
.venv/bin/python -m pip install --quiet --no-deps "timm>=1"
touch .venv/ready
