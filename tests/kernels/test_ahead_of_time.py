"""Every Triton kernel compiles for GPUs from Ampere to Blackwell, in one launch and without register spills.

The launches are the CASES of the files in ahead_of_time/, one file for each kernel, on tensors of memory that
nothing touches; one that is made for some GPUs alone has CAPABILITIES, one that takes more than one launch
says so in LAUNCHES, and one with many cases names those that are compiled daily in DAILY.
"""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.kernels.compilation import compiled_for, interpreting, resources_of

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton interprets in this process")

KERNELS = {
    file.stem: importlib.import_module(f"tests.kernels.ahead_of_time.{file.stem}")
    for file in sorted((Path(__file__).parent / "ahead_of_time").glob("*.py"))
}


def daily(kernel, number, case):
    """Return the GPU that a case is compiled for in make test: Ampere or Hopper, in turn, or none."""
    if case not in getattr(kernel, "DAILY", kernel.CASES):
        return None
    known = [capability for capability in capabilities(kernel) if capability < 100]
    return known[number % len(known)]


def capabilities(kernel):
    return getattr(kernel, "CAPABILITIES", (80, 90, 100))


LAUNCHES = {
    f"{name}-{case}-{capability}": pytest.param(
        launch,
        capability,
        getattr(kernel, "LAUNCHES", 1),
        marks=() if capability == daily(kernel, number, case) else pytest.mark.soak,
    )
    for name, kernel in KERNELS.items()
    for number, (case, launch) in enumerate(kernel.CASES.items())
    for capability in capabilities(kernel)
}


@pytest.mark.parametrize(("launch", "capability", "count"), LAUNCHES.values(), ids=LAUNCHES)
def test_compiles_as_one_launch_without_spilling(launch, capability, count, tmp_path):
    kernels = compiled_for(capability, launch)
    assert len(kernels) == count
    assert [resources_of(kernel, tmp_path).spilled for kernel in kernels] == [0] * count
