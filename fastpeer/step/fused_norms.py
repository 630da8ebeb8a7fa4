"""A network whose BatchNorms take sum and ReLU behind them along, where nothing reads between them."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastpeer.step.split_batchnorm import SplitBatchNorm2d
from fastpeer.victims.tracing import NotFoldable, add_in_place, rename_direct_reads, trace

_RELUS: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_)
_SUMS: tuple[Any, ...] = (operator.add, torch.add, add_in_place)


class NormsFused:
    """Calls a network in train mode, by its own layers, with BatchNorm, sum and ReLU as one call.

    It is called as it is where torch.fx cannot trace it, where a layer has hooks, and where one that is not
    PyTorch's is in eval mode.

    Args:
        network: with split BatchNorm layers; its tensors may be changed in place, its layers not be replaced.

    Attributes:
        obstacle: why the network cannot be traced, "" if it can.
        num_fused: number of BatchNorms with a ReLU, or a sum and a ReLU.
        num_norms: number of BatchNorms that run.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.obstacle = ""
        self.num_fused = self.num_norms = 0
        self._module: nn.Module | None = None
        try:
            graph, modules = trace(network, training=True)
        except NotFoldable as error:
            self.obstacle = str(error)
            return
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        # What is not called by the graph is part of it, as it was in train mode.
        self._traced_into = [module for name, module in modules.items() if name and name not in called]
        self.num_norms = sum(isinstance(modules[name], SplitBatchNorm2d) for name in called)
        fused = _fuse(graph, modules)
        self.num_fused = len(fused)
        if fused:
            self._module = fx.GraphModule({**modules, **fused, **rename_direct_reads(graph, network)}, graph)

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C)."""
        usable = self._module is not None and self._is_as_traced()
        logits: Tensor = (self._module if usable and self._module else self.network)(images)
        return logits

    def describe(self) -> str:
        """Return what is fused, or why nothing is, in a few words."""
        if self.obstacle:
            return f"BatchNorm alone: {self.obstacle}"
        return f"ReLU in {self.num_fused} of {self.num_norms} BatchNorms"

    def _is_as_traced(self) -> bool:
        hooked = any(_has_hooks(module) for module in self.network.modules())
        return not hooked and all(module.training for module in self._traced_into if _has_code(module))


class NormSumReLU(nn.Module):
    """relu(norm(x) [+ residual]), (B, C, H, W) all, in one call where the norm's kernels take it."""

    def __init__(self, norm: SplitBatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise, sum and rectify (B, C, H, W)."""
        return self.norm.sum_relu(x, residual)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _has_code(module: nn.Module) -> bool:
    """Tell whether a module's own forward was traced: PyTorch's containers do not depend on the mode."""
    return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _fuse(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put one call in the place of BatchNorm, sum and ReLU; return the modules that are called, by name."""
    fused: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        norm = modules[str(node.target)] if node.op == "call_module" else None
        if type(norm) is not SplitBatchNorm2d or len(node.args) != 1 or node.kwargs:
            continue
        found = _followers(node, modules)
        if found is None:
            continue
        place, residual, relu = found
        name = f"norm_sum_relu_{len(fused)}"
        fused[name] = NormSumReLU(norm)
        with graph.inserting_before(place):
            call = graph.call_module(name, (*node.args, *residual))
        relu.replace_all_uses_with(call)
        for old in dict.fromkeys((relu, place, node)):
            graph.erase_node(old)
    return fused


def _followers(
    norm: fx.Node, modules: Mapping[str, nn.Module]
) -> tuple[fx.Node, tuple[fx.Node, ...], fx.Node] | None:
    """Return where one call can be in the place of all, the residual if there is one, and the ReLU."""
    user = _only_user(norm)
    if user is None:
        return None
    if _is_relu(user, modules):
        return norm, (), user
    relu = _only_user(user)
    residual = _other_summand(user, norm)
    if residual is None or relu is None or not _is_relu(relu, modules) or not _is_untouched(norm):
        return None
    return user, (residual,), relu


def _is_untouched(norm: fx.Node) -> bool:
    """Tell whether a BatchNorm reads a layer's result that nobody else could change before the sum."""
    x = norm.args[0]
    return isinstance(x, fx.Node) and x.op == "call_module" and _only_user(x) is norm


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _other_summand(node: fx.Node, norm: fx.Node) -> fx.Node | None:
    if node.op != "call_function" or node.target not in _SUMS or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if first is norm and second is not norm:
        return second if isinstance(second, fx.Node) else None
    # x += norm(y) changes x, which others may read.
    return (
        first
        if isinstance(first, fx.Node) and first is not norm and node.target is not add_in_place
        else None
    )


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        # Calls that were put in are not among the modules.
        return type(modules.get(str(node.target))) is nn.ReLU
    by_method = node.op == "call_method" and node.target in ("relu", "relu_")
    return by_method or (node.op == "call_function" and node.target in _RELUS)
