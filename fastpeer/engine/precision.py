"""In which number format a run computes, and on which device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpeer.config import Precision
from fastpeer.errors import UserError, one_line


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


@contextmanager
def memory_errors(setting: str) -> Iterator[None]:
    """Say in one line that the device's memory is full, and which setting to lower."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"the device has too little memory: lower {setting}") from None


def choose_device(name: str) -> torch.device:
    """Return the device a flag names; auto is CUDA where there is one.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = one_line(error).split(". ")[0]
        raise UserError(f"--device {name}: cannot be used here ({reason}); try auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda":
        # FFCV waits for the current device's stream, whichever that is.
        torch.cuda.set_device(device)
    return device
