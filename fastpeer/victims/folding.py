"""A network in eval mode, with every BatchNorm folded into the convolution before it.

The weights are fixed during an attack, so convolution and BatchNorm are one convolution, with the weights
W·γ/√(var+ε) and the bias β + (b − mean)·γ/√(var+ε). A BatchNorm that follows no convolution remains a scale
and a shift, as it is in eval mode.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastpeer.errors import brief
from fastpeer.kernels.fold import FoldedLayer
from fastpeer.victims.tracing import NotFoldable as NotFoldable
from fastpeer.victims.tracing import is_plain, rename_direct_reads, trace


class FoldedConv2d(nn.Module):
    """A convolution with a bias, on buffers that `FoldedNetwork.refresh` writes.

    Args:
        conv: of the same shape, stride, padding, dilation and groups.
        dtype: of the weights and of the computation.
        result_dtype: of the result.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, result_dtype: torch.dtype) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)  # _is_foldable refused it
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.padding = list(conv.padding)
        self.result_dtype = result_dtype
        self.register_buffer("weight", torch.empty_like(conv.weight, dtype=dtype, requires_grad=False))
        # In the network's own dtype: rounding would shift all pixels of a channel in the same direction.
        self.register_buffer("bias", conv.weight.new_empty(conv.out_channels, requires_grad=False))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H', W')."""
        with torch.autocast(images.device.type, enabled=False):
            out = F.conv2d(
                images.to(self.weight.dtype), self.weight, self.bias.to(self.weight.dtype),
                self.stride, self.padding, self.dilation, self.groups,
            )  # fmt: skip
            return out.to(self.result_dtype)


class FoldedLinear(nn.Module):
    """A linear layer with a bias, on buffers of one dtype that `FoldedNetwork.refresh` writes."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty_like(linear.weight, dtype=dtype, requires_grad=False))
        self.register_buffer("bias", linear.weight.new_empty(linear.out_features, dtype=dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


class EvalBatchNorm(nn.Module):
    """A BatchNorm in eval mode, whatever mode the network is in; its parameters get no gradient.

    Raises:
        NotFoldable: the BatchNorm has no running statistics.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise NotFoldable("a BatchNorm keeps no running statistics")
        self.norm = norm

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        norm = self.norm
        return F.batch_norm(
            images, norm.running_mean, norm.running_var, _detached(norm.weight), _detached(norm.bias),
            False, 0.0, norm.eps,
        )  # fmt: skip

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient at the input for the one at the output, both (B, C, H, W) and of one dtype."""
        variance, weight = self.norm.running_var, self.norm.weight
        assert variance is not None  # the constructor checked it
        scale = torch.rsqrt(variance + self.norm.eps)
        if weight is not None:
            scale = scale * weight.detach()
        return gradient * scale.to(gradient.dtype).view(1, -1, 1, 1)


class FoldedNetwork:
    """A network in eval mode, with weights that are folded by each `refresh`, and only then.

    Layers of a derived class that computes something of its own are not folded: `module` calls the network's
    own layers, which must be in eval mode then.

    Args:
        network: traceable by torch.fx; its parameters and statistics are read again at each `refresh`, so
            they may be changed in place, but not replaced. Its other attributes are read here only.
        dtype: of convolutions. The classifier computes in the network's own dtype, and so does the first
            folded layer, unless `dtype` is float16: between 0.5 and 1, bf16 numbers are 1/256 apart, as
            coarse as 8-bit pixels, and the attack's steps would be lost.
        fold: writes the folded weights (`fastpeer.kernels.fold.Fold` or its Triton version).

    Attributes:
        module: maps images (B, 3, H, W) to logits (B, C).
        input_dtype: what the first layer converts images to.
        num_norms: number of the network's BatchNorms that run.
        num_folded: number of those of them that are part of a convolution now.

    Raises:
        NotFoldable: the network cannot be traced, or nothing in it folds.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, fold: type) -> None:
        graph, modules = trace(network)
        self.num_norms = _count_norms(graph, modules)
        own_dtype = next(network.parameters()).dtype
        self.input_dtype = torch.float16 if dtype == torch.float16 else own_dtype
        replaced, layers = _fold_modules(graph, modules, dtype, own_dtype, self.input_dtype)
        if not layers:
            raise NotFoldable("it has no convolution or linear layer of PyTorch's own")
        self.num_folded = self.num_norms - _count_norms(graph, modules)
        self.module = fx.GraphModule({**modules, **replaced, **rename_direct_reads(graph, network)}, graph)
        try:
            self._fold = fold(layers)
        except ValueError as error:
            raise NotFoldable(brief(error)) from None

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the weights and statistics that the network has now."""
        self._fold()


def _count_norms(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> int:
    called = [modules[str(node.target)] for node in graph.nodes if node.op == "call_module"]
    return sum(isinstance(layer, _BatchNorm) for layer in called)


def _is_foldable(conv: nn.Conv2d) -> bool:
    # FoldedConv2d pads by a number of zeros on each side.
    padded_by_zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return padded_by_zeros and is_plain(conv, nn.Conv2d)


def _fold_modules(
    graph: fx.Graph, modules: Mapping[str, nn.Module], dtype: torch.dtype, own_dtype: torch.dtype,
    input_dtype: torch.dtype,
) -> tuple[dict[str, nn.Module], list[FoldedLayer]]:  # fmt: skip
    """Return layers' replacements by name, and what is folded; remove absorbed BatchNorms from the graph."""
    replaced: dict[str, nn.Module] = {}
    layers: list[FoldedLayer] = []
    first = True
    for node in graph.nodes:
        layer = modules[node.target] if node.op == "call_module" else None
        layer_dtype = input_dtype if first else dtype
        if isinstance(layer, nn.Conv2d) and _is_foldable(layer):
            folded = FoldedConv2d(layer, layer_dtype, dtype)
            replaced[node.target] = folded
            layers.append(_folded_layer(layer, _absorb_norm(graph, node, modules), folded))
            first = False
        elif isinstance(layer, nn.Linear) and is_plain(layer, nn.Linear):
            linear = FoldedLinear(layer, own_dtype if _is_classifier(node) else layer_dtype)
            replaced[node.target] = linear
            layers.append(_folded_layer(layer, None, linear))
            first = False
        elif isinstance(layer, _BatchNorm) and is_plain(layer, _BatchNorm):
            replaced[node.target] = EvalBatchNorm(layer)
    return replaced, layers


def _absorb_norm(graph: fx.Graph, node: fx.Node, modules: Mapping[str, nn.Module]) -> _BatchNorm | None:
    """Remove the BatchNorm behind a convolution from the graph, and return it.

    None: there is none, or something else reads the convolution's result, so it cannot be folded.
    """
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    norm = modules[str(users[0].target)]
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or not is_plain(norm, _BatchNorm):
        return None
    users[0].replace_all_uses_with(node)
    graph.erase_node(users[0])
    return norm


def _folded_layer(
    layer: nn.Conv2d | nn.Linear, norm: _BatchNorm | None, folded: FoldedConv2d | FoldedLinear
) -> FoldedLayer:
    return FoldedLayer(
        weight=layer.weight,
        bias=layer.bias,
        gamma=None if norm is None else norm.weight,
        beta=None if norm is None else norm.bias,
        mean=None if norm is None else norm.running_mean,
        variance=None if norm is None else norm.running_var,
        eps=0.0 if norm is None else norm.eps,
        folded_weight=folded.weight,
        folded_bias=folded.bias,
    )


def _is_classifier(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()
