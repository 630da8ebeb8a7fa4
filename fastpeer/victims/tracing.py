"""A network's code as a graph, in eval mode, or a reason why that graph might compute something else."""

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
    """A network that torch.fx cannot trace, or whose folded form might compute something else."""


def traced(network: nn.Module) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """Trace what a network does with images in eval mode; it is left as it was.

    Returns:
        Its graph, and its modules by the names that they have there.

    Raises:
        NotFoldable: torch.fx cannot trace it, or its code depends on more than its weights and the images.
    """
    network = _Called(network)
    random = torch.get_rng_state()
    before = _bytes(random)
    try:
        with _looked_at(network):
            graph = _Tracer().trace(network)
    except NotFoldable:
        raise
    except Exception as error:  # Tracing runs the network's own code, which may raise anything.
        raise NotFoldable(f"torch.fx cannot trace it ({brief(error)})") from None
    if _bytes(torch.get_rng_state()) != before:
        torch.set_rng_state(random)
        raise NotFoldable("its forward draws random numbers")
    modules = dict(network.named_modules())
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    # Tracing goes through such a call, and the graph would make it once more.
    own_calls = [name for name in called if type(modules[name]).__call__ is not nn.Module.__call__]
    if own_calls:
        raise NotFoldable(f"its layer {own_calls[0].removeprefix('network.')} has a __call__ of its own")
    shared = [name for name in called if called.count(name) > 1 and list(modules[name].parameters())]
    if shared:
        raise NotFoldable(f"its layer {shared[0].removeprefix('network.')} is used more than once")
    return graph, modules


def _bytes(random: Tensor) -> bytes:
    """Copy a tensor on the host without an operation of PyTorch's, which a tracing mode might refuse."""
    return ctypes.string_at(random.data_ptr(), random.nbytes)


def read_directly(graph: fx.Graph, network: nn.Module) -> dict[str, Any]:
    """Return the parameters and buffers that the network's code uses without a layer around them.

    They get names of their own in the graph: theirs may lie within layers that others take the place of.
    """
    found: dict[str, Any] = {}
    for number, node in enumerate(node for node in graph.nodes if node.op == "get_attr"):
        value = operator.attrgetter(str(node.target))(_Called(network))
        node.target = f"read_{number}"
        found[node.target] = value
    return found


def is_plain(layer: nn.Module, base: type[nn.Module]) -> bool:
    """Tell whether a layer of a type derived from `base` computes, in eval mode, what `base` does.

    A type that overrides a method may say that in eval mode it hands on what it overrides, by
    `transparent_in_eval` in its own body: it does not hold for types derived from it. Hooks and
    parametrizations, weight norm for one, change from outside what a layer computes.
    """
    methods = {"forward", "_conv_forward"} & set(dir(base))
    if any(name in vars(layer) for name in methods) or is_hooked(layer) or parametrize.is_parametrized(layer):
        return False
    if not {"weight", "bias"} <= layer._parameters.keys():
        return False
    return all(_definer(type(layer), name).__module__.startswith("torch.nn.modules.") for name in methods)


def is_hooked(layer: nn.Module) -> bool:
    """Tell whether hooks see, and maybe change, what goes into a layer or comes out of it."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


class _Called(nn.Module):
    """Calls a network as everyone does, with images alone: hooks run, and optional arguments are left out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def add_in_place(value: Any, other: Any) -> Any:
    """Do what `value += other` does to a tensor, or to a number."""
    value += other
    return value


def change_in_place(operation: str, value: Any, other: Any) -> Any:
    """Do what another operator of that kind does, such as `imul` of the module `operator`."""
    return getattr(operator, operation)(value, other)


class _Value(fx.Proxy):
    """A tensor that is still to come; `x += y` changes it, where by default it would make another one."""

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
    """Sees layers with weights as one operation each, and refuses what would not follow the network.

    What is computed from buffers becomes part of the graph, where by default it would stay as it is now.
    """

    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (nn.Conv2d, nn.Linear, _BatchNorm, InputNormalization))
        return known or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        made = super().create_arg(a)
        if isinstance(made, fx.Node) and str(made.target).startswith("_tensor_constant"):
            raise NotFoldable("its forward makes a tensor of its own")
        return made


@contextmanager
def _looked_at(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, which its code may ask for, and leave no trace of what that code does."""
    before = [(module, dict(vars(module))) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _definer(layer: type, method: str) -> type:
    """Return the type that a method is inherited from, past those that only hand it on in eval mode."""
    return next(
        one for one in layer.__mro__ if method in vars(one) and not vars(one).get("transparent_in_eval")
    )
