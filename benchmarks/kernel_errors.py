"""How exact the Triton kernels are: errors against the float64 oracle, beside plain PyTorch's.

python benchmarks/kernel_errors.py                      on a GPU
TRITON_INTERPRET=1 python benchmarks/kernel_errors.py   without one, in Triton's interpreter
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from cases import SHAPES, Case
from fastpeer.engine.loss import LossTable
from fastpeer.kernels.choice import Kernels, torch_kernels, triton_kernels
from harness.table import show

BATCH = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Comparison:
    """One kernel on one input.

    Attributes:
        kernel: its name.
        case: what the input is.
        inputs: tensors in the dtypes that the kernel is given.
        results: calls one implementation; several tensors whose errors are told apart, by name.
    """

    kernel: str
    case: str
    inputs: Sequence[Tensor]
    results: Callable[[Kernels, Sequence[Tensor]], dict[str, Tensor]]


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """Yield what is shown."""
    torch.manual_seed(0)
    for dataset, (size, classes) in SHAPES.items():
        for dtype in DTYPES:
            case = f"{dataset}, {BATCH} x {classes}, {str(dtype).removeprefix('torch.')}"
            yield loss(dataset, case, logits(3, classes, dtype, device))
            yield gradient(case, logits(2, classes, dtype, device))
            yield moving_gradient(case, logits(2, classes, dtype, device))
        yield update(f"{dataset}, 8 x 3 x {size} x {size}, float32", size, device)
        yield start(f"{dataset}, 8 x 3 x {size} x {size}, float32", size, device)


def logits(count: int, classes: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [(3 * torch.randn(BATCH, classes)).to(device, dtype) for _ in range(count)]


def loss(dataset: str, case: str, inputs: Sequence[Tensor]) -> Comparison:
    """PeerAiD's terms at the released weights."""
    terms = LossTable(Case("resnet18", dataset, BATCH).config("fp32").table).terms
    labels = torch.arange(BATCH, device=inputs[0].device) % inputs[0].shape[1]

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        values, gradients, _ = kernels.distill_loss(inputs, labels, terms)
        names = ("at the peer's", "at the student's", "at the student's, clean")
        return {"values": values, **dict(zip(names, gradients, strict=True))}

    return Comparison("distill_loss", case, inputs, results)


def gradient(case: str, inputs: Sequence[Tensor]) -> Comparison:
    """Towards probabilities in float32, or for the truth in float64."""

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        exact = inputs[1].double() if inputs[1].dtype == torch.float64 else inputs[1].float()
        return {"": kernels.attack_gradient(inputs[0], torch.softmax(exact, 1))}

    return Comparison("attack_gradient", case, inputs, results)


def moving_gradient(case: str, inputs: Sequence[Tensor]) -> Comparison:
    """Between two networks that both see the adversarial image."""

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        gradients = kernels.moving_attack_gradient(*inputs)
        return dict(zip(("at the student's", "at the teacher's"), gradients, strict=True))

    return Comparison("moving_attack_gradient", case, inputs, results)


def update(case: str, size: int, device: torch.device) -> Comparison:
    """Step by 2/255 in a ball of 8/255."""
    images = torch.rand(8, 3, size, size)
    inputs = [images + 0.02 * torch.randn_like(images), torch.randn_like(images), images]

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"": kernels.pgd_update(*inputs, 2 / 255, 8 / 255)[0]}

    return Comparison("pgd_update", case, [one.to(device) for one in inputs], results)


def start(case: str, size: int, device: torch.device) -> Comparison:
    """Uniform within 8/255, clamped; in float64 the noise has more digits behind the same ones."""
    key = torch.tensor(12345, device=device)

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"": kernels.uniform_start(inputs[0], 8 / 255, key, clamp=True)}

    return Comparison("uniform_start", case, [torch.rand(8, 3, size, size).to(device)], results)


def rows(one: Comparison) -> Iterator[tuple[str, ...]]:
    """Yield a row for each result."""
    true = one.results(torch_kernels(), [tensor.double() for tensor in one.inputs])
    plain = one.results(torch_kernels(), [tensor.float() for tensor in one.inputs])
    for name, ours in one.results(triton_kernels(), one.inputs).items():
        error = largest_error(ours, true[name])
        beside = largest_error(stored(plain[name], ours.dtype), true[name])
        ratio = f"{error / beside:.2f}" if beside else "equal" if not error else "∞"
        yield (
            one.kernel,
            one.case,
            name,
            f"{true[name].abs().max():.1e}",
            f"{error:.1e}",
            f"{beside:.1e}",
            ratio,
        )


def largest_error(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).abs().max())


def stored(result: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 as the kernels do: Triton's interpreter cuts bfloat16 off, GPUs round."""
    if INTERPRETING and dtype == torch.bfloat16:
        result = (result.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return result.to(dtype)


def main() -> None:
    """Compute all errors and show them."""
    if not INTERPRETING and not torch.cuda.is_available():
        sys.exit("there is no GPU here; TRITON_INTERPRET=1 interprets the kernels instead")
    device = torch.device("cpu" if INTERPRETING else "cuda")
    where = "Triton's interpreter" if INTERPRETING else torch.cuda.get_device_name()
    table = Table(title=f"Largest errors against the float64 oracle, {where}")
    for heading in ("kernel", "case", "result", "largest value", "Triton", "PyTorch", "ratio"):
        table.add_column(heading, justify="left" if heading in ("kernel", "case", "result") else "right")
    for comparison in comparisons(device):
        for row in rows(comparison):
            table.add_row(*row)
    show(table)


if __name__ == "__main__":
    main()
