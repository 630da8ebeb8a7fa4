"""The Triton version of gathering, cropping and flipping."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.crop_and_flip import crop_and_flip as oracle
from fastpeer.kernels.fused.crop_and_flip import crop_and_flip
from tests.kernels.layouts import laid_out_alike


def random_dataset(device, count=50, height=8, width=8, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=random)
    return images.to(device)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    indices=st.lists(st.integers(0, 49), max_size=6).map(lambda some: torch.tensor(some, dtype=torch.int64)),
    key=st.none() | st.integers(0, 20) | st.integers(0, 2**64 - 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32),
)
def test_images_equal_the_oracles_bit_for_bit(device, height, width, indices, key, dtype, seed):
    dataset = random_dataset(device, 50, height, width, seed)
    result = crop_and_flip(dataset, indices.to(device), key, dtype)
    assert torch.equal(result, oracle(dataset, indices.to(device), key, dtype))
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_pixel_becomes_the_nearest_number_to_n_over_255(device, dtype):
    pixels = torch.arange(256, dtype=torch.uint8, device=device).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    result = crop_and_flip(pixels.contiguous(), torch.zeros(1, dtype=torch.int64, device=device), None, dtype)
    exact = torch.tensor([n / 255 for n in range(256)], dtype=torch.float64)
    assert torch.equal(result[0, 2].flatten().cpu(), exact.to(dtype))


DATASET, INDICES = random_dataset("cpu"), torch.arange(4)


@pytest.mark.parametrize(
    ("dataset", "indices", "dtype", "says"),
    [
        (DATASET, INDICES, torch.bfloat16, "float32 or float64"),
        (DATASET.int(), INDICES, torch.float32, "uint8"),
        (DATASET.transpose(1, 2), INDICES, torch.float32, "contiguous"),
        (DATASET[0], INDICES, torch.float32, "uint8"),
        (DATASET, INDICES.int(), torch.float32, "int64"),
        (DATASET, torch.arange(8)[::2], torch.float32, "contiguous"),
        (DATASET, INDICES[None], torch.float32, "int64"),
        (torch.zeros(1, 5000, 5000, 3, dtype=torch.uint8), INDICES, torch.float32, "numbers"),
    ],
)
def test_unusable_arguments_are_refused(device, dataset, indices, dtype, says):
    with pytest.raises(ValueError, match=says):
        crop_and_flip(laid_out_alike(dataset, device), laid_out_alike(indices, device), 0, dtype)


def test_indices_on_another_device_are_refused(device):
    with pytest.raises(ValueError, match=r"indices must be on .*, got meta"):
        crop_and_flip(DATASET.to(device), INDICES.to("meta"), 0, torch.float32)
