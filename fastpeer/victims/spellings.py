"""What a node of a folded network's graph computes, whichever of its usual spellings the code chose."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from fastpeer.models.normalized import InputNormalization
from fastpeer.victims.chain_steps import (
    Add,
    ApplyLinear,
    ApplyRelu,
    AveragePool,
    Convolve,
    Mean,
    Normalise,
    NormaliseInput,
    Reshape,
    Step,
)
from fastpeer.victims.folding import EvalBatchNorm, FoldedConv2d, FoldedLinear
from fastpeer.victims.tracing import add_in_place, is_hooked

RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
SUMS = (operator.add, torch.add, add_in_place, "add", "add_")
IN_PLACE = (torch.relu_, "relu_", "add_", add_in_place)
MEANS = (torch.mean, "mean")
SQUEEZES = (torch.squeeze, "squeeze")
FLATTENINGS = (torch.flatten, "flatten")
RESHAPES = (torch.reshape, "reshape", "view")
NOTHING = ("contiguous", "clone")
"""Methods that return a tensor's values unchanged: a chain has its own memory format, and changes none."""


class NotAChain(Exception):
    """The network has an operation that no step of a chain computes; the message names it."""


@dataclass(frozen=True)
class Operation:
    """What a node computes.

    Attributes:
        step: computes it; None: it hands its input through.
        settings: of the step, behind its source and result.
    """

    step: type[Step] | None
    settings: tuple[Any, ...] = ()


PASS_ON = Operation(None)
FLATTEN = Operation(Reshape, (partial(torch.flatten, start_dim=1),))


def operation(node: fx.Node, modules: Mapping[str, nn.Module]) -> Operation:
    """Return what a node computes; `modules` are the graph's, by name.

    Raises:
        NotAChain: no step computes it.
    """
    layer = layer_of(node, modules)
    if layer is not None and is_hooked(layer):
        raise NotAChain(f"its layer {node.target} has hooks")
    if node.op == "get_attr":
        raise NotAChain("it reads a parameter or buffer outside of a layer")
    found = _of_layer(layer) if layer is not None else _of_function(node)
    if found is None:
        called = getattr(node.target, "__name__", str(node.target)) if layer is None else type(layer).__name__
        name = node.name.removeprefix("network_")
        raise NotAChain(f"there is no rule for {called}" + (f" ({name})" if name != called else ""))
    return found


def layer_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the layer that a node calls, if it calls one."""
    return modules[str(node.target)] if node.op == "call_module" else None


def is_shape(node: fx.Node) -> bool:
    """Tell whether a node is a tensor's shape, or a part of one: no step computes it."""
    if node.target is operator.getitem:
        return is_shape(node.all_input_nodes[0])
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.op == "call_method" and node.target == "size"


def is_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a node overwrites its first input."""
    layer = layer_of(node, modules)
    inplace = getattr(layer, "inplace", False) or node.kwargs.get("inplace", False)
    return bool(inplace) or node.target in IN_PLACE or (node.target is F.relu and len(node.args) > 1)


def _of_layer(layer: nn.Module) -> Operation | None:
    empty = isinstance(layer, nn.Sequential) and not len(layer)
    # In eval mode, which folding traces, dropout does nothing either.
    if empty or isinstance(layer, (nn.Identity, _DropoutNd)):
        return PASS_ON
    if isinstance(layer, nn.ReLU):
        return Operation(ApplyRelu)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return _adaptive_pool(layer.output_size)
    if isinstance(layer, nn.AvgPool2d):
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        return _average_pool(*(getattr(layer, name) for name in names))
    if isinstance(layer, nn.Flatten):
        return _flatten(layer.start_dim, layer.end_dim)
    return _of_weighted_layer(layer)


def _of_weighted_layer(layer: nn.Module) -> Operation | None:
    if isinstance(layer, EvalBatchNorm) and not isinstance(layer.norm, nn.BatchNorm2d):
        return None
    steps: dict[type[nn.Module], type[Step]] = {
        FoldedConv2d: Convolve,
        EvalBatchNorm: Normalise,
        InputNormalization: NormaliseInput,
        FoldedLinear: ApplyLinear,
    }
    return next((Operation(steps[kind], (layer,)) for kind in steps if isinstance(layer, kind)), None)


def _of_function(node: fx.Node) -> Operation | None:
    target = node.target
    if target in NOTHING or (target is F.dropout and node.kwargs.get("training") is False):
        return PASS_ON
    if target in RELUS:
        return Operation(ApplyRelu)
    if target in SUMS and not node.kwargs:
        return _sum(node)
    reading: dict[Any, Callable[..., Operation | None]] = {
        F.adaptive_avg_pool2d: _adaptive_pool,
        F.avg_pool2d: partial(_average_pool_of, node),
        **dict.fromkeys(MEANS, _mean),
        **dict.fromkeys(SQUEEZES, _squeeze),
        **dict.fromkeys(FLATTENINGS, _flatten),
        **dict.fromkeys(RESHAPES, _reshape),
    }
    if target not in reading:
        return None
    try:
        return reading[target](*node.args[1:], **node.kwargs)
    except TypeError:  # arguments that the spelling has no rule for, such as a dtype
        return None


def _sum(node: fx.Node) -> Operation:
    tensors = [summand for summand in node.args if isinstance(summand, fx.Node) and not is_shape(summand)]
    if len(node.args) == len(tensors) == 2:
        return Operation(Add)
    raise NotAChain("it adds something other than two tensors")


def _adaptive_pool(output_size: object) -> Operation | None:
    sizes = tuple(output_size) if isinstance(output_size, Sequence) else output_size
    return Operation(Mean, ((2, 3), True)) if sizes in (1, (1, 1)) else None


def _mean(dim: object, keepdim: bool = False) -> Operation | None:
    dims = _numbers(dim)
    return Operation(Mean, (dims, keepdim)) if dims else None


def _squeeze(dim: object = None) -> Operation | None:
    if dim is None:
        return Operation(Reshape, (torch.squeeze,))
    dims = _numbers(dim)
    return Operation(Reshape, (partial(torch.squeeze, dim=dims),)) if dims else None


def _flatten(start_dim: int = 0, end_dim: int = -1) -> Operation | None:
    return FLATTEN if (start_dim, end_dim) in ((1, -1), (1, 3)) else None


def _reshape(*sizes: Any, shape: Any = None) -> Operation | None:
    """Read x.view(x.size(0), -1) and its like: rows of one sample each, or of a number of features."""
    if len(sizes) == 1 or shape is not None:
        sizes = tuple(sizes[0] if shape is None else shape)
    if len(sizes) != 2:
        return None
    rows, features = sizes
    # The first dimension is the images' in every value of a chain, so whose shape it is from does not matter.
    if _is_part_of_shape(rows, 0):
        return FLATTEN
    if rows == -1 and isinstance(features, int):
        return Operation(Reshape, (partial(torch.reshape, shape=(-1, features)),))
    return None


def _average_pool_of(node: fx.Node, kernel_size: Any, *settings: Any, **named: Any) -> Operation | None:
    """Read F.avg_pool2d; the whole plane may be its kernel: x.shape[2:], x.size()[2:]."""
    whole = _is_part_of_shape(kernel_size, slice(2, None)) and _read_tensor(kernel_size) is node.args[0]
    if whole and not settings and not named:
        return Operation(Mean, ((2, 3), True))
    return _average_pool(kernel_size, *settings, **named)


def _average_pool(
    kernel_size: object, stride: object = None, padding: object = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Operation | None:  # fmt: skip
    kernel, strides, paddings = (
        _pair(sizes) for sizes in (kernel_size, kernel_size if stride in (None, ()) else stride, padding)
    )
    if kernel is None or strides is None or paddings is None:
        return None
    settings = (kernel, strides, paddings, ceil_mode, count_include_pad, divisor_override)
    return Operation(AveragePool, (settings,))


def _pair(sizes: object) -> list[int] | None:
    numbers = _numbers(sizes)
    return list(numbers * 2 if len(numbers) == 1 else numbers) if len(numbers) in (1, 2) else None


def _numbers(value: object) -> tuple[int, ...]:
    """Return one number or several as a tuple; an empty one for anything else."""
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    return numbers if all(type(number) is int for number in numbers) else ()


def _is_part_of_shape(value: object, index: object) -> bool:
    """Tell whether a value is a tensor's x.shape[index] or x.size(index), in any spelling."""
    if not isinstance(value, fx.Node) or not is_shape(value):
        return False
    if value.target is operator.getitem:
        whole = value.all_input_nodes[0]
        is_whole = whole.target is getattr or len(whole.args) == 1
        return is_whole and value.args[1] == index
    return value.target == "size" and (value.args[1:] == (index,) or value.kwargs.get("dim") == index)


def _read_tensor(shape: fx.Node) -> fx.Node:
    """Return the tensor that a shape, or a part of one, is read from."""
    source = shape.all_input_nodes[0]
    return _read_tensor(source) if is_shape(source) else source
