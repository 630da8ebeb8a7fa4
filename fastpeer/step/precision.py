"""The number format of a run: dtypes of weights and products, and which layers stay exact."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastpeer.config import Config, Precision
from fastpeer.device import placed


@dataclass(frozen=True)
class NumberFormat:
    """What a `precision` setting stands for.

    Attributes:
        weights: dtype of weights, images and the attack's iterate.
        autocast: lower dtype of convolutions and matrix products, if any.
        tf32: CUDA may round the inputs of float32 products to TF32.
    """

    weights: torch.dtype
    autocast: torch.dtype | None
    tf32: bool

    def autocasting(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which networks run on a device: autocast, or nothing."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, self.autocast)

    def allow_tf32(self) -> None:
        """Set, for the whole process, whether float32 products on CUDA may use TF32."""
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32


class Exact(nn.Module):
    """A mixin for the layer that reads the pixels: under autocast only its result is rounded.

    Between 0.5 and 1, bf16 numbers are 1/256 apart, as coarse as 8-bit pixels: rounding the layer's input
    would erase most of the attack's perturbation.
    """

    transparent_in_eval = True

    def forward(self, images: Tensor) -> Tensor:
        """Compute in the dtype of images (B, C, H, W) and weights; convert the result to autocast's dtype."""
        device = images.device.type
        with torch.autocast(device, enabled=False):
            out: Tensor = super().forward(images)
        return out.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else out


class ExactConv2d(Exact, nn.Conv2d):
    """`nn.Conv2d` that does not round the pixels under autocast."""


def keep_pixels_exact(network: nn.Module) -> None:
    """Exempt a network's first convolution from autocast, or its first linear layer if it has none.

    The layer's class is replaced in place; its weights and their names in the state dict stay.
    """
    for kind in (nn.Conv2d, nn.Linear):
        first = next((module for module in network.modules() if isinstance(module, kind)), None)
        if first is not None:
            own = type(first)
            exact = ExactConv2d if own is nn.Conv2d else type(f"Exact{own.__name__}", (Exact, own), {})
            first.__class__ = exact
            return


def number_format(precision: Precision) -> NumberFormat:
    """Return the number format of a `precision` setting."""
    formats = {
        "fp64": NumberFormat(torch.float64, None, tf32=False),
        "fp32": NumberFormat(torch.float32, None, tf32=False),
        "tf32": NumberFormat(torch.float32, None, tf32=True),
        "bf16": NumberFormat(torch.float32, torch.bfloat16, tf32=True),
        "fp16": NumberFormat(torch.float32, torch.float16, tf32=True),
    }
    return formats[precision]


def attack_format(config: Config) -> NumberFormat:
    """Return the number format that attacked networks compute in: the run's, or `attack.precision`."""
    numbers = number_format(config.precision)
    if config.attack.precision == "run":
        return numbers
    return replace(numbers, autocast=number_format(config.attack.precision).autocast)


def amp_precision(device: torch.device) -> Precision:
    """Return the precision that `--amp` stands for: bf16, or fp16 on CUDA devices before Ampere."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "fp16"
    return "bf16"


def emulation_warning(dtype: torch.dtype, better: str = "--precision fp32") -> list[str]:
    """Return a line of warning if this processor has no instructions for a dtype, else no line.

    `better` is the flag that avoids it.
    """
    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in names or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return []
    if getattr(torch.ops.mkldnn, names[dtype])():
        return []
    name = str(dtype).removeprefix("torch.")
    return [f"this processor has no {name} instructions: {better} is several times faster"]


def ready(network: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """Move a network to the device, the run's dtype and channels-last; keep the pixels exact under autocast.

    All of it in place; returns the same network.
    """
    numbers = number_format(config.precision)
    network = placed(network, device, numbers.weights)
    if numbers.autocast is not None or attack_format(config).autocast is not None:
        keep_pixels_exact(network)
    return network
