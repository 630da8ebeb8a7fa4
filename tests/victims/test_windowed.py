"""Logits of images that change in a window are those of the changed images."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.evaluation.accuracy import evaluation_options
from fastpeer.models import build_model
from fastpeer.step.precision import number_format
from fastpeer.victims.windowed import windowed_logits

HEIGHT, WIDTH = 16, 13


@cache
def chain(model):
    torch.manual_seed(0)
    network = build_model(model, 5, mean=(0.5,), std=(0.2,)).eval()
    device = torch.device("cpu")
    victim = evaluation_options(device).victim_factory(number_format("fp32"), device).victim(network, "it")
    victim.refresh()
    return victim.chain


@pytest.mark.parametrize(
    "model",
    ["wideresnet10x1"]
    + [pytest.param(name, marks=pytest.mark.soak) for name in ("resnet8", "preactresnet18", "resnet50")],
)
@given(data=st.data())
def test_changed_windows_have_the_logits_of_the_changed_images(model, data):
    side, count = data.draw(st.integers(1, 7)), 3
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    images = torch.rand(count, 3, HEIGHT, WIDTH, generator=generator)
    with torch.no_grad():
        windowed = windowed_logits(chain(model), images, side)
        for _ in range(2):
            top, left = (data.draw(st.integers(0, limit - side)) for limit in (HEIGHT, WIDTH))
            pixels = torch.rand(count, 3, side, side, generator=generator)
            changed = images.clone()
            changed[:, :, top : top + side, left : left + side] = pixels
            found = windowed.change(((top, top + side), (left, left + side)), pixels)
            expected = chain(model).logits(changed)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            refused = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
            windowed.take_back(refused)
            images = torch.where(refused.view(-1, 1, 1, 1), images, changed)
            kept = torch.arange(count) > 0
            if count == 3 and data.draw(st.booleans()):
                windowed.only(kept)
                images, count = images[kept], count - 1


def test_a_window_that_reaches_everything_is_not_worth_it():
    assert windowed_logits(chain("resnet8"), torch.rand(2, 3, HEIGHT, WIDTH), 12) is None
    assert windowed_logits(chain("resnet8"), torch.rand(2, 3, HEIGHT, WIDTH), 3).steps
