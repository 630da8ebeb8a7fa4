"""Backward from given gradients is torch's, bit for bit, and imports no SymPy."""

import sys

import pytest
import torch

from fastpeer.victims.seeded import seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ambient", [torch.no_grad, torch.enable_grad])
def test_gradients_are_those_of_torchs_backward(dtype, ambient):
    torch.manual_seed(0)
    weight, images = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 4), (3, 5)))
    outputs = [images @ weight, (images.relu() @ weight).tanh(), images.exp()]
    gradients = [torch.randn_like(output) for output in outputs]
    expected = torch.autograd.grad(outputs, [weight, images], gradients, retain_graph=True)
    with ambient():
        found = torch.autograd.grad(seeded(outputs, gradients), [weight, images])
    assert all(map(torch.equal, found, expected))


def test_no_sympy_is_imported(monkeypatch):
    # torch imports SymPy by way of this module, which cannot be imported here.
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    leaf = torch.ones(2, requires_grad=True)
    with pytest.raises(ImportError):
        torch.autograd.backward([leaf * 2], [torch.ones(2)])
    seeded([leaf * 2], [torch.ones(2)]).backward()
    assert leaf.grad.tolist() == [2, 2]
