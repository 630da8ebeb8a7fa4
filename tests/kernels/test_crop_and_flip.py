"""Gather, crop, flip, and pixels as numbers."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from fastpeer.data.counter import counter_key
from fastpeer.kernels.counter_bits import random_bits
from fastpeer.kernels.crop_and_flip import augmented, crop_and_flip, to_unit_range

KEY = counter_key(0, "train augmentation", 0)


def random_images(count, height=8, width=8):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=random)
    return images.to(memory_format=torch.channels_last)


def slow_crop_and_flip(images, indices, key):
    results = []
    for image, bits in zip(images.numpy(), random_bits(key, indices).tolist(), strict=True):
        bits &= (1 << 64) - 1
        top, left = ((bits >> place & 0xFFFFF) % 9 for place in (1, 21))
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        crop = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        results.append(crop[:, :, ::-1] if bits & 1 else crop)
    return torch.from_numpy(np.stack(results))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 12)])
def test_crop_and_flip_equals_a_loop_over_images(height, width):
    images, indices = random_images(64, height, width), torch.arange(1000, 1064)
    result = augmented(images, indices, KEY)
    assert torch.equal(result, slow_crop_and_flip(images, indices, KEY))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_an_image_is_augmented_alike_in_any_batch():
    images, indices = random_images(16), torch.arange(16)
    whole = augmented(images, indices, KEY)
    chosen = torch.tensor([11, 3, 7])
    assert torch.equal(augmented(images[chosen], chosen, KEY), whole[chosen])


def test_each_epoch_augments_anew():
    images, indices = random_images(16), torch.arange(16)
    first, second = (
        augmented(images, indices, counter_key(0, "train augmentation", epoch)) for epoch in (0, 1)
    )
    assert not torch.equal(first, second)


def test_all_crops_and_flips_are_equally_likely():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    samples = torch.arange(16200)
    results = augmented(image.expand(len(samples), 3, 8, 8), samples, KEY)
    counts = np.unique(results[:, 0].reshape(len(samples), -1).numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 81 * 2
    assert 0.001 < chisquare(counts).pvalue < 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_become_the_nearest_number_to_n_over_255(dtype):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    exact = torch.tensor([n / 255 for n in range(256)], dtype=torch.float64)
    result = to_unit_range(pixels, dtype)
    assert torch.equal(result.flatten(), exact.to(dtype))
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key", [KEY, None])
def test_images_of_a_data_set_are_gathered_first(key, dtype):
    images, indices = random_images(16, 5, 12), torch.tensor([11, 3, 3, 7])
    result = crop_and_flip(images.permute(0, 2, 3, 1), indices, key, dtype)
    chosen = images[indices]
    expected = to_unit_range(chosen if key is None else augmented(chosen, indices, key), dtype)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)
