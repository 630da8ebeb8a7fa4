"""What a file holds in place of weights: refused by the tensor's name, before it is computed with."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastpeer.errors import UserError

UNPACKED_FACTOR = 4
"""PyTorch stores tensors as they are; a file may be packed anew, but not unpack to more times its size."""
SMALL = 1 << 26
"""Bytes that are read whatever they were packed into."""


def refuse_bomb(path: Path) -> None:
    """Refuse a checkpoint, a zip archive, that would unpack to far more than it holds.

    Raises:
        UserError: its members are many times as large as the file, or it is an archive that cannot be listed.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return  # A pickle alone, which is as large as it is.
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # Of a damaged archive, zipfile raises nearly anything.
        # PyTorch's own reader may be content with it, and would unpack it.
        raise UserError(f"{path}: damaged or not a checkpoint; not loaded") from None
    size = path.stat().st_size
    if unpacked > max(SMALL, UNPACKED_FACTOR * size):
        raise UserError(f"{path}: would unpack from {size:,} to {unpacked:,} bytes; not loaded")


def refuse_other_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not plain numbers in memory.

    Raises:
        UserError: a tensor is sparse, quantised, complex, of no memory, or larger than what it stands on.
    """
    for name, tensor in tensors.items():
        if kind := _other_kind(tensor):
            raise UserError(f"{path}: weights must be plain tensors, got {name}, {kind}")


def _other_kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "which is on the meta device and holds no numbers"
    if tensor.layout != torch.strided:
        return f"which is sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return "which is quantised"
    if tensor.is_complex():
        return "which is complex"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    # A view of one number may pretend to hold 10^12 of them.
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > max(held, SMALL):
        return f"of {tensor.numel():,} numbers on {held:,} bytes"
    return ""


def refuse_other_numbers(path: Path, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with which a network cannot compute: logits of NaN are classified all the same.

    Args:
        path: their file, for the message.
        expected: the network's tensors.
        weights: those of the file, of the same names and shapes.

    Raises:
        UserError: a tensor is of another kind of numbers, holds NaN or infinity, or negative variances.
    """
    for name, tensor in expected.items():
        _refuse_other_dtype(path, name, tensor, weights[name])
        # In the network's own dtype, in which a large number of another may be infinite.
        finite = weights[name].to(tensor.dtype).isfinite()
        if not finite.all():
            count = int((~finite).sum())
            numbers = f"{count} of {finite.numel()} numbers" if finite.dim() else "a number"
            raise UserError(f"{path}: weights must be finite, got NaN or infinity in {name} ({numbers})")
        if name.endswith("running_var") and (weights[name] < 0).any():
            raise UserError(
                f"{path}: variances must not be negative, got some in {name}: the file is damaged"
            )


def _refuse_other_dtype(path: Path, name: str, expected: Tensor, found: Tensor) -> None:
    # Averages of models may count batches in floating point.
    fits = found.is_floating_point() or not expected.is_floating_point()
    if not fits or (found.dtype == torch.bool) != (expected.dtype == torch.bool):
        own, other = (str(tensor.dtype).removeprefix("torch.") for tensor in (expected, found))
        raise UserError(f"{path}: {name} must hold numbers such as {own}, got {other}")
