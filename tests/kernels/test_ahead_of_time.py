"""Every Triton kernel compiles for GPUs from Ampere to Blackwell, in one launch and without register spills.

The launches are the CASES of the files in ahead_of_time/, one file for each kernel.
"""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.kernels.compilation import bytes_of_local_memory, compiled_for, interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton interprets in this process")

LAUNCHES = {
    f"{file.stem}-{name}": launch
    for file in sorted((Path(__file__).parent / "ahead_of_time").glob("*.py"))
    for name, launch in importlib.import_module(f"tests.kernels.ahead_of_time.{file.stem}").CASES.items()
}


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_compiles_as_one_launch_without_spilling(launch, capability, tmp_path):
    (kernel,) = compiled_for(capability, launch)
    assert bytes_of_local_memory(kernel, tmp_path) == 0
