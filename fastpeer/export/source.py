"""A network's definition as one file of plain PyTorch, so that its weights can be used without fastpeer."""

import ast
import importlib
import inspect
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from fastpeer.errors import UserError
from fastpeer.evaluation.opening import OpenedNetwork
from fastpeer.models import layers, shipped_builder
from fastpeer.models.foreign import class_argument, timm_options
from fastpeer.models.names import class_path, timm_name
from fastpeer.models.normalized import without_normalization

HEAD = '''\
"""{name}, written by fastpeer export: needs PyTorch{more}, not fastpeer.

    from network import load
    network = load("model.pth")
    logits = network(images)  # (B, 3, H, W) in [0, 1] to (B, {classes})
"""
'''

LOADER = '''
import torch
from torch import nn


class Classifier(nn.Module):
    """The network with its normalisation in front: images (B, 3, H, W) in [0, 1] to logits (B, classes)."""

    def __init__(self, classes={classes}):
        super().__init__()
        self.register_buffer("mean", torch.zeros({channels}, 1, 1))
        self.register_buffer("std", torch.ones({channels}, 1, 1))
        self.network = {build}

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


def load(path="model.pth"):
    """Return the network in eval mode."""
    network = Classifier()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    return network.eval()
'''


def network_source(opened: OpenedNetwork) -> str:
    """Return a Python file that defines the network, and `load`, which puts the weights into it.

    A shipped network's layers are in it; timm's and the user's own classes are imported.
    """
    body, build, more = _definition(opened)
    mean, _ = opened.normalization
    loader = LOADER.format(classes=opened.classes, channels=max(len(mean), 1), build=build)
    return HEAD.format(name=opened.name, classes=opened.classes, more=more) + body + loader


def plain_state(opened: OpenedNetwork) -> dict[str, object]:
    """Return what `load` of the source reads: the weights, and mean and std of the normalisation."""
    mean, std = opened.normalization
    state = without_normalization(opened.network).state_dict()
    weights = {f"network.{name}": value.clone().contiguous() for name, value in state.items()}
    buffers = {
        "mean": torch.tensor(mean or (0.0,)).view(-1, 1, 1),
        "std": torch.tensor(std or (1.0,)).view(-1, 1, 1),
    }
    return {"state_dict": buffers | weights}


def load_plain(folder: Path) -> nn.Module:
    """Open a network by the file that was written for it, as its user does."""
    file, module = folder / "network.py", ModuleType("exported_network")
    # An import would leave Python's own files in the folder.
    exec(compile(file.read_text("utf-8"), file, "exec"), vars(module))
    network: nn.Module = module.load(folder / "model.pth")
    return network


def _definition(opened: OpenedNetwork) -> tuple[str, str, str]:
    """Return the text before the loader, the expression that builds the network, and what else it needs."""
    if (name := timm_name(opened.name)) is not None:
        options = "".join(f", {key}={value!r}" for key, value in timm_options(name, opened.size).items())
        build = f"timm.create_model({name!r}, pretrained=False, num_classes=classes{options})"
        return "\nimport timm\n", build, " and timm"
    if path := class_path(opened.name):
        return _own_definition(*path)
    builder = shipped_builder(opened.name)
    source = inspect.getmodule(builder.func)
    assert source is not None
    return _without_fastpeer(layers) + _without_fastpeer(source), _expression(builder), ""


def _own_definition(module: str, attribute: str) -> tuple[str, str, str]:
    outer = attribute.partition(".")[0]
    build = importlib.import_module(module)
    for part in attribute.split("."):
        build = getattr(build, part)
    name = class_argument(build)
    call = f"{attribute}({name}=classes)" if name else f"{attribute}(classes)"
    return f"\nfrom {module} import {outer}\n", call, f" and your own {module}"


def _expression(builder: "partial[nn.Module]") -> str:
    function = builder.func
    arguments = ", ".join([*map(repr, builder.args), "classes"])
    return f"{getattr(function, '__name__', '')}({arguments})"


def _without_fastpeer(module: ModuleType) -> str:
    """Return a module's source without its imports from fastpeer, whose source stands before it."""
    text = inspect.getsource(module)
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastpeer"):
            if node.module != layers.__name__:
                raise UserError(f"{module.__name__} needs {node.module}: it cannot be written as one file")
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n" + "\n".join(lines) + "\n"
