# docker build -t fastpeer .
# docker run --gpus all -v "$PWD:/work" fastpeer train cifar10-resnet18 --amp
# Add --user "$(id -u):$(id -g)" where files must not become root's. 64 MB of shared memory, Docker's default, is
# enough: prep takes 24 bytes an image of it, training and evaluation none.
#
# PyTorch's default package brings CUDA along; on machines without a GPU it computes on the CPU. A smaller image
# for these (4.5 GB) comes of --build-arg TORCH_INDEX=URL, with the index of CPU builds that PyTorch's site names.
# Another BASE must be Debian or Ubuntu with Python 3.10 to 3.13, its headers and pip. The PyTorch in it is replaced
# unless it is the version in constraints.txt.
#
# Built by buildah 1.28, not by Docker, from Debian bookworm's own Python 3.11 with pip 24.0 in place of the image that
# BASE names, with TORCH_INDEX. In its root, by chroot and on a CPU, as root and as user 1000: prep, an epoch of the
# demo, eval, and a Triton kernel compiled ahead of time. Never built: the default BASE, and PyTorch with CUDA; never
# run: by Docker itself, and on a GPU.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# FFCV is compiled against these, Triton calls the compiler.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ pkg-config libopencv-dev libturbojpeg0-dev \
    && rm -rf /var/lib/apt/lists/*

# Debian's and Ubuntu's own pip would refuse: no system's packages need protection here.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
ARG TORCH_INDEX=
# By itself, before the sources: the layer stays while they change.
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt . && rm -rf build *.egg-info

# Downloads and what Triton compiles are cached in it. A --user without a home could not write to /.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["fastpeer"]
CMD ["--help"]
