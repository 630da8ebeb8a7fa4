"""Traces a network in one mode to a graph, or refuses where the graph might compute something else."""

import ctypes
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fastpeer.errors import brief
from fastpeer.models.normalized import InputNormalization


class NotFoldable(Exception):
    """torch.fx cannot trace the network, or its folded form might compute something else; says why."""


def trace(network: nn.Module, training: bool = False) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """Trace what a network computes from images in eval (or train) mode; the network is left unchanged.

    Returns:
        Its graph, and its modules by their names in the graph.

    Raises:
        NotFoldable: torch.fx cannot trace it, or its code depends on more than its weights and the images.
    """
    root = _CalledWithImages(network)
    graph = _trace_in_mode(root, training)
    modules = dict(root.named_modules())
    _check_calls([node.target for node in graph.nodes if node.op == "call_module"], modules)
    return graph, modules


def _trace_in_mode(root: nn.Module, training: bool) -> fx.Graph:
    rng_state = torch.get_rng_state()
    before = _bytes(rng_state)
    try:
        with _restored_from_mode(root, training):
            graph = _Tracer().trace(root)
    except NotFoldable:
        raise
    except Exception as error:  # Tracing runs the network's own code, which may raise anything.
        raise NotFoldable(f"torch.fx cannot trace it ({brief(error)})") from None
    # A number drawn while tracing would be a constant of the graph.
    if _bytes(torch.get_rng_state()) != before:
        torch.set_rng_state(rng_state)
        raise NotFoldable("its forward draws random numbers")
    return graph


def _check_calls(called: list[Any], modules: dict[str, nn.Module]) -> None:
    """Refuse calls of layers that a graph with folded layers could not repeat."""
    # Tracing goes through a __call__, and the graph's own call of the layer would go through it once more.
    own_calls = [name for name in called if type(modules[name]).__call__ is not nn.Module.__call__]
    if own_calls:
        raise NotFoldable(f"its layer {own_calls[0].removeprefix('network.')} has a __call__ of its own")
    # The BatchNorms behind two calls of a convolution may differ, but there is one set of folded weights.
    shared = [name for name in called if called.count(name) > 1 and list(modules[name].parameters())]
    if shared:
        raise NotFoldable(f"its layer {shared[0].removeprefix('network.')} is used more than once")


def _bytes(tensor: Tensor) -> bytes:
    """Copy a tensor on the host without PyTorch's operators, which a tracing mode might refuse."""
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def rename_direct_reads(graph: fx.Graph, network: nn.Module) -> dict[str, Any]:
    """Rename the parameters and buffers that the network's code reads outside of their layers.

    A folded layer may replace the one that they belong to, and their names would be lost with it.

    Returns:
        The tensors, by their new names in the graph.
    """
    direct: dict[str, Any] = {}
    for number, node in enumerate(node for node in graph.nodes if node.op == "get_attr"):
        value = operator.attrgetter(str(node.target))(_CalledWithImages(network))
        node.target = f"read_{number}"
        direct[node.target] = value
    return direct


def is_plain(layer: nn.Module, base: type[nn.Module]) -> bool:
    """Tell whether a layer of a class derived from `base` computes, in eval mode, what `base` does.

    A class that overrides a method sets `transparent_in_eval` in its body if in eval mode the method computes
    what the overridden one does; classes derived from it do not inherit that. Hooks and parametrizations,
    like weight norm, change from outside what a layer computes.
    """
    methods = {"forward", "_conv_forward"} & set(dir(base))
    if any(name in vars(layer) for name in methods) or is_hooked(layer) or parametrize.is_parametrized(layer):
        return False
    # A subclass may compute its weight from other parameters.
    if not {"weight", "bias"} <= layer._parameters.keys():
        return False
    defining = [_defining_class(type(layer), name) for name in methods]
    return all(base.__module__.startswith("torch.nn.modules.") for base in defining)


def is_hooked(layer: nn.Module) -> bool:
    """Tell whether a layer has forward hooks, which may change its input or result."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


class _CalledWithImages(nn.Module):
    """The root of a trace: calls the network with images alone.

    Tracing the network itself would skip its own hooks, and make its optional arguments inputs of the graph.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def add_in_place(value: Any, other: Any) -> Any:
    """Compute `value += other`, in place for a tensor, and return the result."""
    value += other
    return value


def change_in_place(operation: str, value: Any, other: Any) -> Any:
    """Apply another in-place operator of the module `operator`, such as "imul", and return the result."""
    return getattr(operator, operation)(value, other)


class _Proxy(fx.Proxy):
    """A proxy that records `x += y` as a change in place.

    fx.Proxy lacks these operators, so Python would fall back to `x = x + y`: other names of the same tensor
    would keep its old value in the graph.
    """

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", add_in_place, (self, other), {})

    def _changed(self, operation: str, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", change_in_place, (operation, self, other), {})

    __isub__ = partialmethod(_changed, "isub")
    __imul__ = partialmethod(_changed, "imul")
    __itruediv__ = partialmethod(_changed, "itruediv")
    __ifloordiv__ = partialmethod(_changed, "ifloordiv")
    __imod__ = partialmethod(_changed, "imod")
    __ipow__ = partialmethod(_changed, "ipow")
    __imatmul__ = partialmethod(_changed, "imatmul")
    __iand__ = partialmethod(_changed, "iand")
    __ior__ = partialmethod(_changed, "ior")
    __ixor__ = partialmethod(_changed, "ixor")


class _Tracer(fx.Tracer):
    """Keeps layers with weights as one node each, and refuses constants that would not follow the network."""

    # What is computed from buffers becomes part of the graph; by default it would be a constant.
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # By default, layers of classes outside torch.nn are traced into, such as this project's BatchNorms.
        is_layer = isinstance(m, (nn.Conv2d, nn.Linear, _BatchNorm, InputNormalization))
        return is_layer or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        arg = super().create_arg(a)
        # torch.fx stores a tensor that is neither parameter nor buffer under this name.
        if isinstance(arg, fx.Node) and str(arg.target).startswith("_tensor_constant"):
            raise NotFoldable("its forward makes a tensor of its own")
        return arg


@contextmanager
def _restored_from_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Put a network into one mode; at the end, undo that and whatever its code stored in attributes."""
    before = [(module, dict(vars(module))) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _defining_class(layer: type, method: str) -> type:
    """Return the class that defines a method, past those that are transparent in eval mode."""
    return next(
        base for base in layer.__mro__ if method in vars(base) and not vars(base).get("transparent_in_eval")
    )
