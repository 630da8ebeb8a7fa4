# docker build -t fastpeer .
# docker run --gpus all --shm-size 1g -v "$PWD:/work" fastpeer train cifar10-resnet18 --amp
#
# PyTorch's default package brings CUDA along; on machines without a GPU it computes on the CPU. A smaller image
# for these comes of --build-arg TORCH_INDEX=URL, with the index of CPU builds that PyTorch's site names. Another
# BASE must be Debian or Ubuntu with Python 3.10 to 3.13 and pip, such as one that has PyTorch already.
#
# No image has been built. Checked without Docker, on Debian bookworm with Python 3.11: that the apt packages exist;
# both pip commands from a fresh clone, in a virtual environment that had the dependencies already, from a wheel
# (prep, train, eval, runs and info ran in it before, --help and recipes after).
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# FFCV is compiled against these, Triton calls the compiler.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ pkg-config libopencv-dev libturbojpeg0-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /build
ARG TORCH_INDEX=
# By itself, before the sources: the layer stays while they change.
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt . && rm -rf build *.egg-info

WORKDIR /work
ENTRYPOINT ["fastpeer"]
CMD ["--help"]
