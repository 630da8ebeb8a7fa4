"""Tests that launch the Triton kernels: in Triton's interpreter, or on a GPU.

With TRITON_INTERPRET=1 they run interpreted on CPU tensors (tests/kernels/test_interpreted.py does that in
a process of its own), else on the GPU; where there is none they are not collected.
For another kernel add test_fused_<kernel>.py here; its tests put their tensors on the fixture `device`, and
tests/kernels/accuracy.py compares errors. Its launches at the sizes of a training go to
tests/kernels/ahead_of_time/<kernel>.py, from where they are compiled without a GPU.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

NO_PARAMETERS = SimpleNamespace(params={})
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETING or torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a GPU here; interpreted, float16 differs from bfloat16 by its rounding alone."""
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        if not INTERPRETING:
            item.add_marker(pytest.mark.gpu)
        elif torch.float16 in getattr(item, "callspec", NO_PARAMETERS).params.values():
            item.add_marker(pytest.mark.soak)


@pytest.fixture(scope="session", autouse=INTERPRETING)
def adapted_interpreter() -> None:
    """Let an older Triton interpret under a newer NumPy, and sum as GPUs do."""
    from tests.kernels.interpreter import adapt_interpreter

    adapt_interpreter()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors of a launch belong."""
    return torch.device("cpu" if INTERPRETING else "cuda")
