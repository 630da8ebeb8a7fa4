"""The kernels of the step, each with the inputs it meets there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.replay import Call
from benchmarks.steps.cases import SHAPES, Case
from fastpeer.kernels import crop_and_flip
from fastpeer.kernels.choice import Kernels, torch_kernels
from fastpeer.models import build_model
from fastpeer.step.loss import LossTable
from fastpeer.victims.folding import FoldedNetwork

Shape = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class KernelCase:
    """One kernel on one shape.

    Attributes:
        name: of the kernel.
        shape: what a record says of the inputs.
        inputs: makes one set of inputs, anew at each call.
        function: takes an implementation out of a set of kernels, as a function of the inputs.
        bytes_moved: that it cannot avoid, read and written.
    """

    name: str
    shape: Shape
    inputs: Callable[[], Sequence[Any]]
    function: Callable[[Kernels], Callable[..., object]]
    bytes_moved: int


def kernel_cases(batch: int, device: torch.device) -> list[KernelCase]:
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
            for make in (update_case, start_case, uniform_case, crop_case)
        ),
        *(fold_case(model, device) for model in ("resnet18", "wideresnet34x10")),
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
        lambda one: one.attack_gradient,
        moved,
    )


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
        lambda one: one.moving_attack_gradient,
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

    weights = sum(one.numel() for one in network.parameters())
    return KernelCase("fold", {"model": model}, lambda: (), function, weights * 6)


def calls(function: Callable[..., object], sets: Sequence[Sequence[Any]]) -> list[Call]:
    """Bind a function to each set of inputs."""
    return [lambda one=one: function(*one) for one in sets]  # type: ignore[misc]


def normal(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw from N(0, 9): logits of a network that has learnt something."""
    return (3 * torch.randn(*shape, device=device)).to(dtype)


def normal_like(images: Tensor) -> Tensor:
    """Draw a gradient for images."""
    return torch.randn(images.shape, device=images.device).contiguous(memory_format=torch.channels_last)


def pixels(batch: int, size: int, device: torch.device) -> Tensor:
    """Draw images in [0, 1] (batch, 3, size, size), channels-last."""
    return torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
