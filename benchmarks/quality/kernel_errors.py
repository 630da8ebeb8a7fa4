"""How exact the Triton kernels are: errors against the float64 oracle, beside plain PyTorch's.

python -m benchmarks.quality.kernel_errors
Without a GPU they run in Triton's interpreter.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.harness.display import show
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from benchmarks.steps.cases import SHAPES, Case
from fastpeer.errors import UserError
from fastpeer.kernels.batch_norm import Running
from fastpeer.kernels.choice import Kernels, torch_kernels, triton_kernels
from fastpeer.kernels.fold import FoldedLayer
from fastpeer.step.loss import LossTable

BATCH = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RATIO = "times plain PyTorch's error"


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Compare the kernels' largest errors with those of the same formulas in plain PyTorch."""

    only: tuple[str, ...] = ()
    """Names of kernels; none: all."""


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
        yield l2_update(f"{dataset}, 8 x 3 x {size} x {size}, float32", size, device)
        yield from starts(f"{dataset}, 8 x 3 x {size} x {size}, float32", size, device)
        yield crop(f"{dataset}, 8 x 3 x {size} x {size}, float32", size, device)
        yield head(f"{dataset}, 8 x 512 x 4 x 4, {classes} classes, float16", classes, device)
    for side in (1, 3):
        for stride in (1, 2):
            case = f"4 x 64 x 8 x 8 to 64, {side} x {side} at stride {stride}, float16"
            yield convolution(case, side, stride, device)
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        yield epilogue(f"8 x 64 x 16 x 16, {short}", dtype, device)
        yield batch_norm(f"2 x 4 x 64 x 16 x 16, sum and ReLU, {short}", dtype, device)
        yield fold(f"64 x 64 x 3 x 3 to {short}", dtype, device)
    yield batch_norm("2 x 4 x 64 x 16 x 16 about 1e4, float32", torch.float32, device, mean=1e4)
    yield first_convolution("8 x 3 x 16 x 16 to 64, float32", device)


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

    return Comparison("pgd_update", case, [tensor.to(device) for tensor in inputs], results)


def l2_update(case: str, size: int, device: torch.device) -> Comparison:
    """Step by 0.1 in an L2 ball of 0.5."""

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"": kernels.pgd_l2_update(*inputs, 0.1, 0.5)[0]}

    return Comparison("pgd_l2_update", case, update(case, size, device).inputs, results)


def epilogue(case: str, dtype: torch.dtype, device: torch.device) -> Comparison:
    """Bias, residual and ReLU over a convolution's result; the bias is kept in float32."""
    out, residual = (torch.randn(8, 64, 16, 16).to(device, dtype) for _ in range(2))
    inputs = [out, torch.randn(64, device=device), residual]

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"": kernels.bias_sum_relu(inputs[0].clone(), inputs[1], inputs[2], True)}

    return Comparison("bias_sum_relu", case, inputs, results)


def convolution(case: str, side: int, stride: int, device: torch.device) -> Comparison:
    """Run a layer with all that surrounds it: forward bias, residual and ReLU, back residual and mask."""
    behind = 8 // stride
    shapes = [(4, 64, 8, 8), (64, 64, side, side), (4, 64, behind, behind), (4, 64, 8, 8)]
    made = [torch.randn(shape).to(device, torch.float16) for shape in shapes]
    x, weight, y, like_x = (one.contiguous(memory_format=torch.channels_last) for one in made)

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        x, weight, y, like_x, bias = inputs
        back = kernels.convolution_input_gradient(y, weight, like_x, x, stride)
        return {"forward": kernels.convolution(x, weight, bias, y, True, stride), "back": back}

    inputs = [x, weight / (8 * side), y, like_x, torch.randn(64, device=device)]
    return Comparison("convolution", case, inputs, results)


def head(case: str, classes: int, device: torch.device) -> Comparison:
    """ResNet-18's last layers, behind a ReLU."""
    features = torch.relu(torch.randn(8, 512, 4, 4)).to(device, torch.float16)
    weight, logits = torch.randn(classes, 512, device=device) / 8, torch.randn(8, classes, device=device)
    inputs = [
        features.contiguous(memory_format=torch.channels_last), weight, weight[:, 0], torch.softmax(logits, 1)
    ]  # fmt: skip

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"": kernels.attack_head(*inputs, relu=True)}

    return Comparison("attack_head", case, inputs, results)


def first_convolution(case: str, device: torch.device) -> Comparison:
    """Run the layer that reads the pixels, with its ReLU, and the attack's step by its gradient."""
    shapes = [(8, 3, 16, 16), (64, 3, 3, 3), (8, 64, 16, 16)]
    made = [torch.randn(shape).to(device).contiguous(memory_format=torch.channels_last) for shape in shapes]
    inputs = [made[0].sigmoid(), made[1] / 5, made[2], torch.randn(64, device=device)]

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        images, weight, gradient, bias = inputs
        return {
            "forward": kernels.first_convolution(images, weight, bias, True, images.dtype),
            "back": kernels.first_convolution_gradient(gradient, weight),
            "step": kernels.first_convolution_step(gradient, weight, images, images, 2 / 255, 8 / 255),
        }

    return Comparison("first_convolution", case, inputs, results)


def batch_norm(case: str, dtype: torch.dtype, device: torch.device, mean: float = 0.0) -> Comparison:
    """Normalise two halves by their own statistics, and move the running ones by both.

    Sum and ReLU come behind it about 0 only: float32 numbers about 1e4 are 1e-3 apart, which of the results
    near 0 a ReLU lets through is chance.
    """
    behind = mean == 0
    made = [torch.randn(8, 64, 16, 16).to(device) for _ in range(3)]
    made[0] += mean + torch.randn(64, 1, 1).to(device)
    batches = [one.to(dtype).contiguous(memory_format=torch.channels_last) for one in made]
    inputs = [*batches, *torch.randn(2, 64, device=device)]

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        x, residual, gradient, weight, bias = inputs
        running = Running(torch.zeros_like(bias), torch.ones_like(bias), 0.1, (0, 1))
        of = kernels.batch_norm
        out = of.forward(x, 2, weight, bias, 1e-5, residual if behind else None, behind, running)
        back = of.backward(gradient, x, out.y, out.mean, out.rstd, weight, bias, 2, behind, behind)
        found = {**out._asdict(), "running mean": running.mean, "running variance": running.variance}
        return found | {f"back at {name}": one for name, one in back._asdict().items() if one is not None}

    return Comparison("batch_norm", case, inputs, results)


def fold(case: str, dtype: torch.dtype, device: torch.device) -> Comparison:
    """Fold a BatchNorm into the weights before it; the folded bias is kept in float32."""
    weight, folded = torch.randn(2, 64, 64, 3, 3, device=device)
    gamma, beta, mean, spread = torch.randn(4, 64, device=device)
    inputs = [weight, gamma, beta, mean, spread.square() + 0.1, folded.to(dtype)]

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        weight, gamma, beta, mean, variance, folded = inputs
        layer = FoldedLayer(
            weight=weight, bias=None, gamma=gamma, beta=beta, mean=mean, variance=variance, eps=1e-5,
            folded_weight=torch.empty_like(folded), folded_bias=torch.empty_like(mean),
        )  # fmt: skip
        kernels.fold([layer])()
        return {"weight": layer.folded_weight, "bias": layer.folded_bias}

    return Comparison("fold", case, inputs, results)


def starts(case: str, size: int, device: torch.device) -> Iterator[Comparison]:
    """Noise of an attack's start, clamped; in float64 it has more digits behind the same ones."""
    key = torch.tensor(12345, device=device)
    images = torch.rand(8, 3, size, size).to(device)

    def of(name: str, radius: float) -> Comparison:
        def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
            return {"": getattr(kernels, name)(inputs[0], radius, key, clamp=True)}

        return Comparison(name, case, [images], results)

    return map(of, ("uniform_start", "gaussian_start", "uniform_l2_start"), (8 / 255, 1e-3, 0.5))


def crop(case: str, size: int, device: torch.device) -> Comparison:
    """Crop and flip stored images; what is given as input says no more than the result's dtype."""
    stored_images = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8).to(device)
    indices = torch.arange(8, device=device)

    def results(kernels: Kernels, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"": kernels.crop_and_flip(stored_images, indices, 12345, inputs[0].dtype)}

    return Comparison("crop_and_flip", case, [torch.empty(0)], results)


def rows(comparison: Comparison, report: Report) -> Iterator[tuple[str, ...]]:
    """Record the errors of a comparison, and yield a row for each result."""
    from tests.kernels.accuracy import errors, stored

    true = comparison.results(torch_kernels(), [tensor.double() for tensor in comparison.inputs])
    plain = comparison.results(torch_kernels(), [tensor.float() for tensor in comparison.inputs])
    for name, ours in comparison.results(triton_kernels(), comparison.inputs).items():
        (found,) = errors([ours], [stored(plain[name], ours.dtype)], [true[name]])
        error, beside = found.kernel, found.plain
        ratio = f"{error / beside:.2f}" if beside else "equal" if not error else "∞"
        times = error / beside if beside else (float("inf") if error else 0.0)
        if times > 2 and error <= 2**-22 * found.largest:
            ratio += " *"
        report.add(counted(comparison.kernel, times, RATIO, case=comparison.case, result=name))
        yield (
            comparison.kernel,
            comparison.case,
            name,
            f"{found.largest:.1e}",
            f"{error:.1e}",
            f"{beside:.1e}",
            ratio,
        )


def main(arguments: Arguments) -> None:
    """Compute all errors, show and write them."""
    device = arguments.chosen_device()
    if device.type == "cpu":
        # Before Triton is imported, which happens with the first kernel.
        os.environ["TRITON_INTERPRET"] = "1"
        from tests.kernels.interpreter import adapt_interpreter

        adapt_interpreter()
    report = Report("kernel_errors", arguments, device, arguments.json)
    where = str(report.facts["device"]) if device.type == "cuda" else "Triton's interpreter"
    table = Table(title=f"Largest errors against the float64 oracle, {where}")
    for heading in ("kernel", "case", "result", "largest value", "Triton", "PyTorch", "ratio"):
        table.add_column(heading, justify="left" if heading in ("kernel", "case", "result") else "right")
    for comparison in _chosen(arguments.only, device):
        for row in rows(comparison, report):
            table.add_row(*row)
    report.save()
    show(
        table,
        "* at most two units in the last float32 place: PyTorch, where it sums in float64, errs by less.",
    )


def _chosen(only: Sequence[str], device: torch.device) -> list[Comparison]:
    every = list(comparisons(device))
    names = list(dict.fromkeys(one.kernel for one in every))
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"--only must be among {', '.join(names)}, got {unknown[0]}")
    return [one for one in every if not only or one.kernel in only]


if __name__ == "__main__":
    start(main, Arguments)
