"""Compiles the Triton kernels of a launch for GPUs that are not there."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


def compiled_for(capability: int, launch: Callable[[], object]) -> list[Any]:
    """Call `launch`, whose tensors may be on the CPU, and return what its Triton launches would run.

    Each is compiled with the types, the alignment and the options of that launch, but not run: what `launch`
    returns is worth nothing.

    Args:
        capability: compute capability of the GPU, such as 90.
        launch: launches kernels.
    """
    kernels = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert "enable_fp_fusion" in options, "a launch says whether it allows multiply and add to be fused"
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))

    # Triton 3.4 has it as it is, later ones behind a property.
    active = "_active" if "_active" in vars(driver) else "active"
    gpu = mock.patch.object(driver, active, _pretended_gpu(capability))
    with gpu, mock.patch.object(JITFunction, "run", compile_only):
        launch()
    return kernels


def _pretended_gpu(capability: int) -> mock.Mock:
    gpu = mock.Mock()
    # Triton keeps what it compiled by the number of the device.
    gpu.get_current_device.return_value = capability
    gpu.get_current_target.return_value = GPUTarget("cuda", capability, 32)
    return gpu


class Resources(NamedTuple):
    """What a thread of a compiled kernel takes: registers, and bytes of local memory for what did not fit."""

    registers: int
    spilled: int


def resources_of(kernel: Any, folder: Path) -> Resources:
    """Return what a compiled kernel takes; its code is written into the folder."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], check=True, capture_output=True, text=True
    ).stdout
    registers, local = (re.findall(rf"(?:{kind}):(\d+)", usage) for kind in ("REG", "STACK|LOCAL"))
    return Resources(sum(map(int, registers)), sum(map(int, local)))


def interpreting() -> bool:
    """Whether Triton interprets in this process, and thus cannot compile."""
    return bool(triton.knobs.runtime.interpret)
