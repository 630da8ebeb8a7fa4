"""timm, also where there is no torchvision: it imports that for parts that no network here needs."""

import enum
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
from torch import nn

MODES = "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS"


class NoTorchvision(MetaPathFinder, Loader):
    """Finds modules below torchvision in which every name is a class that does nothing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__dict__["__getattr__"] = nothing
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def nothing(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return enum.Enum(name, MODES) if name == "InterpolationMode" else type(name, (nn.Module,), {})


@contextmanager
def torchvision_or_nothing() -> Iterator[None]:
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    finder = NoTorchvision()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def need_timm() -> None:
    """Import timm, or skip the test."""
    with torchvision_or_nothing():
        pytest.importorskip("timm")
