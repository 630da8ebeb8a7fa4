"""The formulas of a step as Triton kernels, one launch each: same names and arguments as the PyTorch oracles.

They run on CUDA tensors, and in Triton's interpreter (TRITON_INTERPRET=1) on CPU tensors.
"""

from fastpeer.kernels.fused import (
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

__all__ = [
    "attack_gradient",
    "attack_head",
    "batch_norm",
    "bias_sum_relu",
    "convolution",
    "crop_and_flip",
    "distill_loss",
    "first_convolution",
    "fold",
    "gaussian_start",
    "moving_attack_gradient",
    "pgd_l2_update",
    "pgd_update",
    "uniform_l2_start",
    "uniform_start",
]
