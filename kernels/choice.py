"""The kernels as one set, in plain PyTorch or in Triton."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastpeer.kernels import (
    attack_gradient,
    attack_head,
    batch_norm,
    bias_sum_relu,
    convolution,
    crop_and_flip,
    distill_loss,
    first_convolution,
    fold,
    gaussian_start,
    moving_attack_gradient,
    pgd_l2_update,
    pgd_update,
    uniform_l2_start,
    uniform_start,
)
from fastpeer.kernels.batch_norm import BatchNorm


@dataclass(frozen=True)
class Kernels:
    """One implementation of each formula; the modules of the same names say what they compute."""

    distill_loss: Callable[..., Any]
    attack_gradient: Callable[..., Any]
    attack_head: Callable[..., Any]
    moving_attack_gradient: Callable[..., Any]
    pgd_update: Callable[..., Any]
    pgd_l2_update: Callable[..., Any]
    bias_sum_relu: Callable[..., Any]
    convolution: Callable[..., Any]
    convolution_input_gradient: Callable[..., Any]
    first_convolution: Callable[..., Any]
    first_convolution_gradient: Callable[..., Any]
    first_convolution_step: Callable[..., Any]
    gaussian_start: Callable[..., Any]
    uniform_start: Callable[..., Any]
    uniform_l2_start: Callable[..., Any]
    crop_and_flip: Callable[..., Any]
    fold: type
    batch_norm: BatchNorm


def torch_kernels() -> Kernels:
    """Return the formulas in plain PyTorch, for any device and dtype."""
    return Kernels(
        distill_loss=distill_loss.distill_loss,
        attack_gradient=attack_gradient.attack_gradient,
        attack_head=attack_head.attack_head,
        moving_attack_gradient=moving_attack_gradient.moving_attack_gradient,
        pgd_update=pgd_update.pgd_update,
        pgd_l2_update=pgd_l2_update.pgd_l2_update,
        bias_sum_relu=bias_sum_relu.bias_sum_relu,
        convolution=convolution.convolution,
        convolution_input_gradient=convolution.convolution_input_gradient,
        first_convolution=first_convolution.first_convolution,
        first_convolution_gradient=first_convolution.first_convolution_gradient,
        first_convolution_step=first_convolution.first_convolution_step,
        gaussian_start=gaussian_start.gaussian_start,
        uniform_start=uniform_start.uniform_start,
        uniform_l2_start=uniform_l2_start.uniform_l2_start,
        crop_and_flip=crop_and_flip.crop_and_flip,
        fold=fold.Fold,
        batch_norm=batch_norm.KERNELS,
    )


def triton_kernels() -> Kernels:
    """Return the Triton kernels, for CUDA and dtypes up to float32.

    Raises:
        ImportError: Triton is not installed.
    """
    from fastpeer.kernels import fused

    return Kernels(
        distill_loss=fused.distill_loss.distill_loss,
        attack_gradient=fused.attack_gradient.attack_gradient,
        attack_head=fused.attack_head.attack_head,
        moving_attack_gradient=fused.moving_attack_gradient.moving_attack_gradient,
        pgd_update=fused.pgd_update.pgd_update,
        pgd_l2_update=fused.pgd_l2_update.pgd_l2_update,
        bias_sum_relu=fused.bias_sum_relu.bias_sum_relu,
        convolution=fused.convolution.convolution,
        convolution_input_gradient=fused.convolution.convolution_input_gradient,
        first_convolution=fused.first_convolution.first_convolution,
        first_convolution_gradient=fused.first_convolution.first_convolution_gradient,
        first_convolution_step=fused.first_convolution.first_convolution_step,
        gaussian_start=fused.gaussian_start.gaussian_start,
        uniform_start=fused.uniform_start.uniform_start,
        uniform_l2_start=fused.uniform_l2_start.uniform_l2_start,
        crop_and_flip=fused.crop_and_flip.crop_and_flip,
        fold=fused.fold.Fold,
        batch_norm=fused.batch_norm.KERNELS,
    )
