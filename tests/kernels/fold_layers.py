"""Layers to be folded."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from fastpeer.kernels.fold import FoldedLayer


def random_layer(
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    weights: torch.dtype = torch.float32,
    biases: torch.dtype = torch.float32,
    bias: bool = True,
    norm: bool = True,
    affine: bool = True,
    channels_last: bool = False,
    eps: float = 1e-5,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FoldedLayer:
    """Make a layer of `dtype` with buffers of `weights` and `biases`; a shape (O,) is a lone BatchNorm."""
    random = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=dtype).to(device)

    weight = None if len(shape) == 1 else draw(*shape)
    if channels_last and len(shape) == 4 and weight is not None:
        weight = weight.to(memory_format=torch.channels_last)
    source = draw(shape[0]) if weight is None else weight
    return FoldedLayer(
        weight=weight,
        bias=draw(shape[0]) if bias and weight is not None else None,
        gamma=draw(shape[0]) if norm and affine else None,
        beta=draw(shape[0]) if norm and affine else None,
        mean=draw(shape[0]) if norm else None,
        variance=draw(shape[0]).square() + 0.1 if norm else None,
        eps=eps,
        folded_weight=torch.empty_like(source, dtype=weights).fill_(torch.nan),
        folded_bias=torch.full(shape[:1], torch.nan, dtype=biases, device=device),
    )


def in_float64(layer: FoldedLayer) -> FoldedLayer:
    """Copy all tensors to float64."""
    tensors = {field.name: getattr(layer, field.name) for field in fields(layer) if field.name != "eps"}
    return replace(layer, **{name: None if one is None else one.double() for name, one in tensors.items()})
