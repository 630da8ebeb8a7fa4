"""The gradient at the logits that the attacks climb."""

import pytest
import torch
from torch.nn import functional as F

from fastpeer.kernels.attack_gradient import attack_gradient


def random_case():
    return 3 * torch.randn(5, 7, dtype=torch.float64), torch.softmax(
        torch.randn(5, 7, dtype=torch.float64), 1
    )


@pytest.mark.parametrize("one_hot", [False, True])
def test_it_is_that_of_the_summed_divergence(one_hot):
    logits, target = random_case()
    logits.requires_grad_()
    if one_hot:
        target = F.one_hot(target.argmax(1), 7).double()
    loss = F.kl_div(torch.log_softmax(logits, 1), target, reduction="none").sum()
    (expected,) = torch.autograd.grad(loss, logits)
    ours = attack_gradient(logits.detach(), target, 8.0)
    torch.testing.assert_close(ours, 8 * expected, rtol=0, atol=1e-13)


def test_labels_stand_for_one_hot_probabilities():
    logits, target = random_case()
    labels = target.argmax(1)
    assert torch.equal(attack_gradient(logits, labels), attack_gradient(logits, F.one_hot(labels, 7).float()))


@pytest.mark.parametrize("target_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_scaled_before_it_is_rounded(dtype, target_dtype):
    logits, target = random_case()
    logits, target = logits.to(dtype), target.to(target_dtype)
    expected = 1024 * (torch.softmax(logits.float(), 1) - target.float())
    assert torch.equal(attack_gradient(logits, target, 1024.0), expected.to(dtype))


def test_float64_logits_make_use_of_targets_of_lower_precision():
    logits, target = random_case()
    expected = torch.softmax(logits, 1) - target.float().double()
    assert torch.equal(attack_gradient(logits, target.float()), expected)
