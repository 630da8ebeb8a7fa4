"""A network as it is in eval mode, with every BatchNorm folded into the convolution before it.

During an attack the weights do not move, so conv → bn is one convolution: W·γ/√(var+ε) and
β + (b − mean)·γ/√(var+ε). A BatchNorm that follows no convolution stays scale and shift, as in eval mode.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastpeer.errors import brief
from fastpeer.kernels.fold import FoldedLayer
from fastpeer.victims.tracing import NotFoldable as NotFoldable
from fastpeer.victims.tracing import is_plain, read_directly, traced


class FoldedConv2d(nn.Module):
    """A convolution with static weights of its own, which `FoldedNetwork.refresh` writes.

    Args:
        conv: its shape is taken.
        dtype: of the weights, and what is computed in.
        result_dtype: of what comes out.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, result_dtype: torch.dtype) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)  # _folds saw to that
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.padding = list(conv.padding)
        self.result_dtype = result_dtype
        self.register_buffer("weight", torch.empty_like(conv.weight, dtype=dtype, requires_grad=False))
        # In the network's own dtype: rounding would move all of a channel's pixels the same way.
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
    """A linear layer with static weights of its own."""

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
    """Scale and shift of a BatchNorm by its running statistics, whatever mode the network is in."""

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
        """Gradient at the input, from the one at the output: its product with the scale."""
        variance, weight = self.norm.running_var, self.norm.weight
        assert variance is not None  # the constructor saw to that
        scale = torch.rsqrt(variance + self.norm.eps)
        if weight is not None:
            scale = scale * weight.detach()
        return gradient * scale.to(gradient.dtype).view(1, -1, 1, 1)


class FoldedNetwork:
    """What a network computes in eval mode, from weights that were folded at the last `refresh`.

    Args:
        network: traceable by torch.fx; its parameters and statistics are read again at each `refresh`, so
            they may be changed in place, but not replaced. Its other attributes are read once, here.
        dtype: of convolutions.
        fold: writes the folded weights (`fastpeer.kernels.fold.Fold` or its Triton version).

    Layers of derived types that compute something of their own stay the network's own: they must be in eval
    mode whenever `module` runs. The first folded layer, which sees the pixels, and the classifier compute in
    the network's own dtype: bf16 steps by as much as a pixel does. float16 resolves pixels, so it is used
    for the first one too.

    Attributes:
        module: computes logits (B, C) from images (B, 3, H, W).
        input_dtype: what the first layer converts images to.

    Raises:
        NotFoldable: it cannot be traced, or nothing in it folds.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, fold: type) -> None:
        graph, modules = traced(network)
        own = next(network.parameters()).dtype
        self.input_dtype = torch.float16 if dtype == torch.float16 else own
        replaced, layers = _folded_modules(graph, modules, dtype, own, self.input_dtype)
        if not layers:
            raise NotFoldable("it has no convolution or linear layer of PyTorch's own")
        self.module = fx.GraphModule({**modules, **replaced, **read_directly(graph, network)}, graph)
        try:
            self._fold = fold(layers)
        except ValueError as error:
            raise NotFoldable(brief(error)) from None

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the weights and statistics that the network has now."""
        self._fold()


def _folds(conv: nn.Conv2d) -> bool:
    padded_by_zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return padded_by_zeros and is_plain(conv, nn.Conv2d)


def _folded_modules(
    graph: fx.Graph, modules: Mapping[str, nn.Module], dtype: torch.dtype, own: torch.dtype,
    input_dtype: torch.dtype,
) -> tuple[dict[str, nn.Module], list[FoldedLayer]]:  # fmt: skip
    """Return the layers that take others' place, and drop from the graph what is folded away."""
    replaced: dict[str, nn.Module] = {}
    layers: list[FoldedLayer] = []
    first = True
    for node in graph.nodes:
        layer = modules[node.target] if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d) and _folds(layer):
            folded = FoldedConv2d(layer, input_dtype if first else dtype, dtype)
            replaced[node.target] = folded
            layers.append(_layer(layer, _absorbed_norm(graph, node, modules), folded))
            first = False
        elif isinstance(layer, nn.Linear) and is_plain(layer, nn.Linear):
            sees_pixels = input_dtype if first else dtype
            linear = FoldedLinear(layer, own if _is_classifier(node) else sees_pixels)
            replaced[node.target] = linear
            layers.append(_layer(layer, None, linear))
            first = False
        elif isinstance(layer, _BatchNorm) and is_plain(layer, _BatchNorm):
            replaced[node.target] = EvalBatchNorm(layer)
    return replaced, layers


def _absorbed_norm(graph: fx.Graph, node: fx.Node, modules: Mapping[str, nn.Module]) -> _BatchNorm | None:
    """Take a BatchNorm that is all that follows a convolution out of the graph, and return it."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    norm = modules[str(users[0].target)]
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or not is_plain(norm, _BatchNorm):
        return None
    users[0].replace_all_uses_with(node)
    graph.erase_node(users[0])
    return norm


def _layer(
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
