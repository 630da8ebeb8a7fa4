"""What is this machine, is everything there, and does what the step is built on work? Asked one by one.

python -m benchmarks.suite.environment
Uses nothing but Python until the first question, so that it can say what is missing. Fails (exit status 1)
only where nothing else would make sense: fastpeer cannot be imported, or a GPU is there and does not compute.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VITAL = ("import fastpeer.training.trainer", "device")
PACKAGES = (
    "torch", "triton", "numpy", "scipy", "scikit-learn", "numba", "setuptools", "ffcv", "pyautoattack",
    "fastpeer", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12",
)  # fmt: skip
MODULES = (
    "numpy", "scipy.stats", "sklearn", "PIL", "safetensors", "rich", "tensorboard", "tyro", "cattrs",
    "tomli_w", "pooch", "numba", "cv2", "triton", "timm", "hypothesis", "pytest", "xdist", "matplotlib",
    "ffcv", "pyautoattack", "fastpeer.data_prep", "fastpeer.kernels.fused", "fastpeer.evaluation.protocol",
    "fastpeer.cli.train",
)  # fmt: skip

Question = Callable[[], object]


def main() -> None:
    """Ask all questions, print and write the answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"script": "environment", "records": [], "missing": [], "notes": {"answers": {}}}
    for name, question in questions(arguments.device).items():
        answer, failed, seconds = asked(question)
        print(f"{name:36} {seconds:6.2f} s  {answer}", flush=True)
        report["notes"]["answers"][name] = answer
        report["records"].append({"name": name, "unit": "s", "value": round(seconds, 2), "labels": {}})
        if failed:
            report["missing"].append({"name": name, "reason": str(answer)})
        if arguments.json:
            write(arguments.json, report)
    wrong = [entry["name"] for entry in report["missing"]]
    print(f"{len(report['records']) - len(wrong)} as they should be; failed: {', '.join(wrong) or 'none'}")
    lost = [name for name in VITAL if name in wrong]
    sys.exit(f"nothing else makes sense without: {', '.join(lost)}" if lost else 0)


def questions(device: str) -> dict[str, Question]:
    """Return what is asked; on a GPU, whether it computes as the step wants it to, too."""
    found: dict[str, Question] = {"machine": machine, "versions": versions}
    found |= {
        "import torch": torch_facts,
        "import fastpeer.training.trainer": importing("fastpeer.training.trainer"),
    }
    found |= {f"import {name}": importing(name) for name in MODULES}
    if device == "cpu" or (device == "auto" and not has_cuda()):
        return found
    return found | {
        "device": gpu,
        "Triton launches, bit for bit": triton_kernel,
        "a captured step learns": captured,
        "torch.compile": compiled,
        "cuDNN's sum and ReLU in one, bf16": lambda: fused_convolution("bfloat16"),
        "cuDNN's sum and ReLU in one, fp32": lambda: fused_convolution("float32"),
    }


def asked(question: Question) -> tuple[object, bool, float]:
    """Return an answer, whether it is an error instead, and the seconds that it took."""
    began = time.perf_counter()
    try:
        answer, failed = question(), False
    except BaseException as error:  # Libraries raise whatever they like, SystemExit too.
        answer, failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", True
    return answer, failed, time.perf_counter() - began


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report such that it is whole at any time."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(report, indent=1, default=str), "utf-8")
    beside.replace(path)


def machine() -> dict[str, object]:
    """Return the processor, its memory, and which tools there are."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    tools = [name for name in ("gcc", "g++", "nvcc", "ncu", "git") if shutil.which(name)]
    return {
        "python": platform.python_version(), "cores": os.cpu_count(), "GiB": memory, "tools": tools,
        "HOME": "HOME" in os.environ, "user": os.getuid(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of what has metadata, and of fastpeer, which may lie here without any."""
    from fastpeer.versions import version_of

    return {name: version for name in PACKAGES if (version := version_of(name))}


def torch_facts() -> dict[str, object]:
    """Return what PyTorch was built with."""
    import torch

    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


def importing(name: str) -> Question:
    """Return the question whether a module can be imported."""
    return lambda: getattr(importlib.import_module(name), "__version__", "yes")


def has_cuda() -> bool:
    """Tell whether PyTorch sees a GPU."""
    try:
        import torch

        return torch.cuda.is_available()
    except Exception:  # A library that does not load; the question behind this one says which.
        return False


def gpu() -> dict[str, object]:
    """Name the GPU, and measure its two limits roughly."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {
        "nvidia-smi": told_by_driver(),
        "TFLOP/s, bf16": round(2 * 8192**3 / seconds(lambda: a @ b) / 1e12),
        "TB/s, copied": round(2 * source.numel() / seconds(lambda: target.copy_(source)) / 1e12, 2),
    }


def told_by_driver() -> str:
    """Return what nvidia-smi says; a GPU that computes need not have it."""
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return told.stdout.strip()


def seconds(action: Callable[[], object], times: int = 20) -> float:
    """Return how long an action takes on the device."""
    import torch

    for _ in range(3):
        action()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(times):
        action()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def triton_kernel() -> str:
    """Compare a kernel with its formula, which it equals to the last bit."""
    import torch

    from fastpeer.kernels import pgd_update as plain
    from fastpeer.kernels.fused import pgd_update as fused

    images = torch.rand(16, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(images).bfloat16()
    ours, theirs = (
        module.pgd_update(images, gradient, images, 2 / 255, 8 / 255)[0] for module in (fused, plain)
    )
    if not torch.equal(ours, theirs):
        raise AssertionError(f"they differ by {(ours - theirs).abs().max().item():.1e}")
    return "equal"


def captured() -> str:
    """Capture a training step as the engine does, see its loss fall, and see that a rate of 0 stops it."""
    import torch

    from fastpeer.step.graph import CudaRecorder

    rate = torch.tensor(0.1, device="cuda")
    step = small_step(rate)
    recorder = CudaRecorder(torch.device("cuda"))
    recorder.warm_up(step)
    loss, replay = recorder.record(step)

    def replayed() -> float:
        replay()
        return loss.item()

    losses = [replayed() for _ in range(5)]
    rate.zero_()
    still = [replayed() for _ in range(2)]
    if losses != sorted(losses, reverse=True) or still[0] != still[1]:
        raise AssertionError(f"losses {losses}, then at a rate of 0 {still}")
    return f"{losses[0]:.4f} to {losses[-1]:.4f}"


def small_step(rate: "torch.Tensor") -> "Callable[[], torch.Tensor]":
    """Return the training step of a small network, which returns its loss; `rate` is its learning rate."""
    import torch

    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3)
    ).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.0, fused=True)
    optimizer.param_groups[0]["lr"] = rate
    images = torch.rand(8, 3, 16, 16, device="cuda").contiguous(memory_format=torch.channels_last)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(images).float().square().mean()
        loss.backward()
        optimizer.step()
        detached: torch.Tensor = loss.detach()
        return detached

    return step


def compiled() -> str:
    """Compile a small function."""
    import torch

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * 2 + 1).sum(0)

    x = torch.randn(1024, 256, device="cuda")
    torch.testing.assert_close(torch.compile(function)(x), function(x))
    return "right"


def fused_convolution(dtype: str) -> str:
    """Ask cuDNN for a convolution with sum and ReLU in its epilogue."""
    import torch

    def drawn(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, device="cuda").to(getattr(torch, dtype))
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    x, z, w, b = drawn(8, 64, 16, 16), drawn(8, 64, 16, 16), drawn(64, 64, 3, 3) / 24, drawn(64)
    torch.backends.cudnn.allow_tf32 = False
    out = torch.cudnn_convolution_add_relu(x, w, z, 1.0, b, [1, 1], [1, 1], [1, 1], 1)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), padding=1) + z.double()
    exact = torch.relu(exact)
    error = ((out.double() - exact).norm() / exact.norm()).item()
    if not error < 1e-2:
        raise AssertionError(f"relative error {error:.1e}")
    return f"relative error {error:.1e}"


if __name__ == "__main__":
    main()
