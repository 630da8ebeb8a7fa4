"""The last layers of an attacked network in plain PyTorch: autograd leads back as they do."""

import pytest
import torch
from torch.nn import functional as F

from fastpeer.kernels.attack_head import attack_head


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_the_gradient_is_autograds(labels, relu):
    random = torch.Generator().manual_seed(0)
    before, weight, bias, logits = (
        torch.randn(*shape, generator=random).double() for shape in [(2, 6, 3, 4), (5, 6), (5,), (2, 5)]
    )
    before.requires_grad_()
    features = before.relu() if relu else before + 0
    out = F.linear(features.mean((2, 3)), weight, bias)
    target = torch.tensor([4, 0]) if labels else torch.softmax(logits, 1)
    expected = torch.autograd.grad(3 * F.cross_entropy(out, target, reduction="sum"), before)[0]
    found = attack_head(features.detach(), weight, bias, target, 3.0, relu)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
