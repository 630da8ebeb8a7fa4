"""In which number format a run computes, and on which device."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpeer.config import Config, Precision
from fastpeer.device import placed


@dataclass(frozen=True)
class NumberFormat:
    """What the settings' `precision` means.

    Attributes:
        weights: dtype of weights, images and the attack's iterate.
        autocast: lower dtype of convolutions and matrix products, if any.
        tf32: CUDA may round the inputs of float32 products to TF32.
    """

    weights: torch.dtype
    autocast: torch.dtype | None
    tf32: bool

    def autocasting(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which networks are run."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, self.autocast)

    def allow_tf32(self) -> None:
        """Tell CUDA, for the whole process, whether float32 products may use TF32."""
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32


class Exact(nn.Module):
    """A layer that sees the pixels: under autocast only what comes out of it is rounded.

    In [0.5, 1] bf16 steps by 1/256, as large as a pixel step, and would swallow the attack's.
    """

    transparent_in_eval = True

    def forward(self, images: Tensor) -> Tensor:
        """Compute in the precision of images (B, C, H, W) and weights."""
        device = images.device.type
        with torch.autocast(device, enabled=False):
            out: Tensor = super().forward(images)
        return out.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else out


class ExactConv2d(Exact, nn.Conv2d):
    """A convolution of PyTorch's own that does so."""


def keep_pixels_exact(network: nn.Module) -> None:
    """Take a network's first convolution out of autocast, in place; its weights and names stay.

    Without a convolution it is the first linear layer.
    """
    for kind in (nn.Conv2d, nn.Linear):
        first = next((module for module in network.modules() if isinstance(module, kind)), None)
        if first is not None:
            plain, own = type(first) is nn.Conv2d, type(first)
            first.__class__ = ExactConv2d if plain else type(f"Exact{own.__name__}", (Exact, own), {})
            return


def number_format(precision: Precision) -> NumberFormat:
    """Return what a `precision` setting stands for."""
    formats = {
        "fp64": NumberFormat(torch.float64, None, tf32=False),
        "fp32": NumberFormat(torch.float32, None, tf32=False),
        "tf32": NumberFormat(torch.float32, None, tf32=True),
        "bf16": NumberFormat(torch.float32, torch.bfloat16, tf32=True),
        "fp16": NumberFormat(torch.float32, torch.float16, tf32=True),
    }
    return formats[precision]


def amp_precision(device: torch.device) -> Precision:
    """Return what `--amp` picks: bf16, or fp16 on CUDA devices that lack it."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "fp16"
    return "bf16"


def emulated(dtype: torch.dtype) -> list[str]:
    """Return a warning if this processor has no instructions for a dtype, or nothing."""
    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in names or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return []
    if getattr(torch.ops.mkldnn, names[dtype])():
        return []
    name = str(dtype).removeprefix("torch.")
    return [f"this processor has no {name} instructions: --precision fp32 is several times faster"]


def ready(network: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """Make a network what the step takes: placed, and exact where it sees the pixels."""
    numbers = number_format(config.precision)
    network = placed(network, device, numbers.weights)
    if numbers.autocast is not None:
        keep_pixels_exact(network)
    return network
