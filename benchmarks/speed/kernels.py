"""Each kernel of the step: Triton beside the PyTorch formula, eager and compiled, on the recipes' shapes.

python -m benchmarks.speed.kernels --batch 128
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.harness.display import Panel, bar_plot, missing, short, show, spread
from benchmarks.harness.measuring import Call, Rounds, Run, alternate, in_turn, replayed, sets_beyond_cache
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Record, Report, record
from benchmarks.speed.layer_cases import Shape, shapes_of, tensors_of
from benchmarks.steps.cases import SHAPES, Case
from fastpeer.errors import UserError, one_line
from fastpeer.kernels import crop_and_flip
from fastpeer.kernels.choice import Kernels, torch_kernels, triton_kernels
from fastpeer.models import build_model
from fastpeer.step.loss import LossTable
from fastpeer.victims.folding import FoldedNetwork

Labels = dict[str, str | int | float | bool | None]
HEADS = {"resnet18": (512, 8), "wideresnet34x10": (640, 4), "mobilenetv2": (1280, 8)}
"""Channels of a network's last feature map, and how many times smaller than an image its sides are."""


@dataclass(frozen=True)
class KernelCase:
    """One kernel on one shape.

    Attributes:
        name: of the kernel.
        shape: what a record says of the inputs.
        inputs: makes one set of inputs, anew at each call.
        function: takes an implementation out of a set of kernels, as a function of the inputs.
        bytes_moved: that it cannot avoid, read and written.
        compiles: whether a compiled form of the PyTorch formula is worth measuring.
    """

    name: str
    shape: Labels
    inputs: Callable[[], Sequence[Any]]
    function: Callable[[Kernels], Callable[..., object]]
    bytes_moved: int
    compiles: bool = True


def kernel_cases(batch: int, networks: Sequence[str], device: torch.device) -> list[KernelCase]:
    """Return every kernel on the shapes of the recipes."""
    return [
        *(
            make(dataset, batch, device)
            for dataset in SHAPES
            for make in (loss_case, gradient_case, moving_case)
        ),
        *(
            make(dataset, batch, device)
            for dataset in ("cifar10", "tiny")
            for make in (update_case, l2_update_case, start_case, uniform_case, l2_start_case, crop_case)
        ),
        *(fold_case(model, device) for model in ("resnet18", "wideresnet34x10")),
        *(
            head_case(dataset, model, batch, device)
            for dataset in SHAPES
            for model in networks
            if model in HEADS
        ),
        *(
            convolution_case(model, shape, batch, device, back)
            for model in networks
            for shape in shapes_of(model)
            for back in (False, True)
        ),
    ]


def loss_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """PeerAiD's five terms over three bf16 logits, with their gradients."""
    classes = SHAPES[dataset][1]
    terms = LossTable(Case("resnet18", dataset, batch).config("bf16").table).terms

    def inputs() -> Sequence[Any]:
        logits = [normal(batch, classes, device=device, dtype=torch.bfloat16) for _ in range(3)]
        return logits, torch.randint(0, classes, (batch,), device=device)

    def function(kernels: Kernels) -> Callable[..., object]:
        return lambda logits, labels: kernels.distill_loss(logits, labels, terms)

    moved = 6 * batch * classes * 2 + batch * 8
    return KernelCase("distill_loss", {"batch": batch, "classes": classes}, inputs, function, moved)


def gradient_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """Gradient at float32 logits towards probabilities: the classifier computes in float32."""
    classes = SHAPES[dataset][1]

    def inputs() -> Sequence[Any]:
        target = torch.softmax(normal(batch, classes, device=device), dim=1)
        return normal(batch, classes, device=device), target

    moved = 3 * batch * classes * 4
    return KernelCase(
        "attack_gradient",
        {"batch": batch, "classes": classes},
        inputs,
        lambda kernels: kernels.attack_gradient,
        moved,
    )


def head_case(dataset: str, model: str, batch: int, device: torch.device) -> KernelCase:
    """Gradient at a network's last bf16 feature map, which comes from a ReLU."""
    size, classes = SHAPES[dataset]
    channels, smaller = HEADS[model]
    side = size // smaller

    def inputs() -> Sequence[Any]:
        features = torch.relu(normal(batch, channels, side, side, device=device, dtype=torch.bfloat16))
        target = torch.softmax(normal(batch, classes, device=device), dim=1)
        weight = normal(classes, channels, device=device) / 64
        return features.contiguous(memory_format=torch.channels_last), weight, weight[:, 0], target, 1.0, True

    shape: Labels = {"batch": batch, "classes": classes, "channels": channels, "size": side}
    moved = 2 * batch * channels * side * side * 2 + classes * channels * 4
    return KernelCase("attack_head", shape, inputs, lambda kernels: kernels.attack_head, moved)


def moving_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """Gradients at the float32 logits of two networks."""
    classes = SHAPES[dataset][1]

    def inputs() -> Sequence[Any]:
        return normal(batch, classes, device=device), normal(batch, classes, device=device)

    moved = 4 * batch * classes * 4
    return KernelCase(
        "moving_attack_gradient",
        {"batch": batch, "classes": classes},
        inputs,
        lambda kernels: kernels.moving_attack_gradient,
        moved,
    )


def update_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """One step of the iterate in float32: the first convolution sees float32."""
    size = SHAPES[dataset][0]

    def inputs() -> Sequence[Any]:
        clean = pixels(batch, size, device)
        return clean + 0.01, normal_like(clean), clean

    def function(kernels: Kernels) -> Callable[..., object]:
        return lambda moving, gradient, clean: kernels.pgd_update(moving, gradient, clean, 2 / 255, 8 / 255)

    moved = 4 * batch * 3 * size * size * 4
    return KernelCase("pgd_update", {"batch": batch, "size": size}, inputs, function, moved)


def l2_update_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """Return the same step in L2."""
    linf = update_case(dataset, batch, device)

    def function(kernels: Kernels) -> Callable[..., object]:
        return lambda moving, gradient, clean: kernels.pgd_l2_update(moving, gradient, clean, 0.1, 0.5)

    return replace(linf, name="pgd_l2_update", function=function)


def start_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """Gaussian noise on float32 images."""

    def function(kernels: Kernels) -> Callable[..., object]:
        return lambda images, key: kernels.gaussian_start(images, 0.001, key)

    return noise_case("gaussian_start", SHAPES[dataset][0], batch, device, function)


def uniform_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """Uniform noise on float32 images, clamped."""

    def function(kernels: Kernels) -> Callable[..., object]:
        return lambda images, key: kernels.uniform_start(images, 8 / 255, key, clamp=True)

    return noise_case("uniform_start", SHAPES[dataset][0], batch, device, function)


def l2_start_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """Noise uniform in the L2 ball on float32 images."""

    def function(kernels: Kernels) -> Callable[..., object]:
        return lambda images, key: kernels.uniform_l2_start(images, 0.5, key)

    return noise_case("uniform_l2_start", SHAPES[dataset][0], batch, device, function)


def noise_case(
    name: str,
    size: int,
    batch: int,
    device: torch.device,
    function: Callable[[Kernels], Callable[..., object]],
) -> KernelCase:
    """Return a start's case: it reads images and writes as many."""

    def inputs() -> Sequence[Any]:
        return pixels(batch, size, device), torch.tensor(12345, device=device)

    moved = 2 * batch * 3 * size * size * 4
    return KernelCase(name, {"batch": batch, "size": size}, inputs, function, moved)


def crop_case(dataset: str, batch: int, device: torch.device) -> KernelCase:
    """Batch out of a data set that lies on the device."""
    size = SHAPES[dataset][0]
    count = 50_000 if device.type == "cuda" else 2_000
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, device=device)

    def inputs() -> Sequence[Any]:
        return images, torch.randint(0, count, (batch,), device=device)

    def function(kernels: Kernels) -> Callable[..., object]:
        call = crop_and_flip.crop_and_flip if kernels == torch_kernels() else fused_crop_and_flip()
        return lambda images, indices: call(images, indices, 12345, torch.float32)

    moved = batch * 3 * size * size * (1 + 4)
    return KernelCase("crop_and_flip", {"batch": batch, "size": size}, inputs, function, moved)


def fused_crop_and_flip() -> Callable[..., Tensor]:
    """Return Triton's; importing it takes Triton."""
    from fastpeer.kernels.fused.crop_and_flip import crop_and_flip as fused

    return fused


def fold_case(model: str, device: torch.device) -> KernelCase:
    """All BatchNorms of a float32 network folded into bf16 weights."""
    network = build_model(model, 10).to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def function(kernels: Kernels) -> Callable[..., object]:
        return FoldedNetwork(network, torch.bfloat16, kernels.fold).refresh

    weights = sum(weight.numel() for weight in network.parameters())
    return KernelCase("fold", {"model": model}, lambda: (), function, weights * 6)


def convolution_case(model: str, shape: Shape, batch: int, device: torch.device, back: bool) -> KernelCase:
    """Return a layer of the attacked network in bf16, with all that may surround it."""

    def inputs() -> Sequence[Any]:
        of = tensors_of(shape, batch, torch.bfloat16, device)
        if back:
            return of.y, of.weight, of.like_x, of.x, shape.stride
        return of.x, of.weight, of.bias, of.y, True, shape.stride

    name = "convolution_input_gradient" if back else "convolution"
    # The formula computes in float32: compiled or not, it is no rival.
    return KernelCase(
        name, {"batch": batch, "layer": f"{model}, {shape}"}, inputs, lambda kernels: getattr(kernels, name),
        shape.bytes_moved(batch, back), compiles=False,
    )  # fmt: skip


def calls(function: Callable[..., object], sets: Sequence[Sequence[Any]]) -> list[Call]:
    """Bind a function to each set of inputs."""
    return [lambda inputs=inputs: function(*inputs) for inputs in sets]  # type: ignore[misc]


def normal(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw from N(0, 9): logits of a network that has learnt something."""
    return (3 * torch.randn(*shape, device=device)).to(dtype)


def normal_like(images: Tensor) -> Tensor:
    """Draw a gradient for images."""
    return torch.randn(images.shape, device=images.device).contiguous(memory_format=torch.channels_last)


def pixels(batch: int, size: int, device: torch.device) -> Tensor:
    """Draw images in [0, 1] (batch, 3, size, size), channels-last."""
    return torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure microseconds for a call: launched from the host in a row, and inside a CUDA graph."""

    batch: int = 128
    """Images in a step."""
    only: tuple[str, ...] = ()
    """Names of kernels; none: all."""
    networks: tuple[str, ...] = ("resnet18", "wideresnet34x10", "mobilenetv2")
    """Whose convolutions are measured."""
    compile: bool = True
    """Measure torch.compile of the PyTorch formulas, too."""
    seconds: float = 0.05
    """Seconds of a round for each variant, about."""


def main(arguments: Arguments) -> None:
    """Measure every kernel, show them and write."""
    device = arguments.chosen_device()
    report = Report("kernels", arguments, device, arguments.json)
    deadline = time.perf_counter() + arguments.budget
    for case in kernel_cases(arguments.batch, arguments.networks, device):
        if arguments.only and case.name not in arguments.only:
            continue
        left = deadline - time.perf_counter()
        if left > 0:
            measure(case, replace(arguments, budget=left), device, report)
        else:
            report.miss(case.name, "no time left: raise --budget, or name it with --only", **case.shape)
        report.save()
    show(table_of(report), *missing(report))
    if device.type != "cuda":
        show("Without CUDA there are no Triton kernels to measure: these are the PyTorch formulas on a CPU.")
    if arguments.plot is not None:
        bar_plot(arguments.plot, f"Kernels, {report.facts['device']}", panels(report))


def measure(case: KernelCase, arguments: Arguments, device: torch.device, report: Report) -> None:
    """Measure one kernel's variants in alternation."""
    sets = [case.inputs() for _ in range(sets_beyond_cache(case.bytes_moved, device))]
    runs: dict[str, Run] = {}
    per_step: dict[str, int] = {}
    for name, function in variants(case, arguments.compile and case.compiles).items():
        try:
            if name == "Triton" and device.type != "cuda":
                raise UserError("needs CUDA")
            bound = calls(function(), sets)
            for call in bound[:3]:
                call()
            add_runs(name, bound, device, runs, per_step)
        except Exception as error:  # Whatever a compiler or a kernel runs into is a result too.
            report.miss(f"{case.name}, {name}", one_line(error)[:300], **case.shape)
    for name, found in alternate(runs, device, arguments.duration()).items():
        report.add(_record(name, case, found, per_step[name], device))


def variants(case: KernelCase, compile_too: bool) -> dict[str, Callable[[], Callable[..., object]]]:
    """Return what makes each implementation."""
    found: dict[str, Callable[[], Callable[..., object]]] = {
        "PyTorch": lambda: case.function(torch_kernels()),
        "Triton": lambda: case.function(triton_kernels()),
    }
    if compile_too:
        found["compiled"] = lambda: torch.compile(case.function(torch_kernels()), dynamic=False)
    return found


def add_runs(
    name: str, bound: list[Call], device: torch.device, runs: dict[str, Run], per_step: dict[str, int]
) -> None:
    """Add a variant's runs, from the host and on CUDA inside a graph."""
    runs[name], per_step[name] = in_turn(bound), 1
    if device.type == "cuda":
        graph = f"{name}, in a graph"
        runs[graph], per_step[graph] = replayed(bound, device)


def _record(name: str, case: KernelCase, found: Rounds, calls_a_step: int, device: torch.device) -> Record:
    micro = [1e6 * seconds / calls_a_step for seconds in found.seconds]
    return record(name, micro, "µs", kernel=case.name, moved=case.bytes_moved, **case.shape)


def table_of(report: Report) -> Table:
    """Return all kernels and variants."""
    table = Table("kernel", "inputs", "variant", "µs", "20th..80th percentile", "GB/s")
    for entry in report.select("µs"):
        rate = float(entry.labels["moved"] or 0) / entry.value / 1e3
        where = str(entry.labels["kernel"]), shape_of(entry)
        table.add_row(*where, entry.name, short(entry.value), spread(entry), short(rate))
    return table


def shape_of(entry: Record) -> str:
    """Write what a kernel was given."""
    inputs = {name: value for name, value in entry.labels.items() if name not in ("kernel", "moved")}
    return ", ".join(f"{name} {value}" for name, value in inputs.items())


def panels(report: Report) -> list[Panel]:
    """Return the plot's panels: a kernel on a shape each."""
    found: dict[str, list[Record]] = {}
    for entry in report.select("µs"):
        found.setdefault(f"{entry.labels['kernel']}, {shape_of(entry)}", []).append(entry)
    return [Panel(title, bars) for title, bars in found.items()]


if __name__ == "__main__":
    start(main, Arguments)
