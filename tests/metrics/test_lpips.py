"""The pairs of images that LPIPS compares; torchmetrics computes the distance."""

import itertools

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.metrics.lpips import MIN_SIDE, Lpips


def mean_difference(first, second):
    """A distance with torchmetrics' interface: images of shape (N, 3, H, W) in 0 … 1."""
    assert first.shape == second.shape
    assert 0 <= first.min() <= first.max() <= 1
    return (first - second).abs().mean()


def gray(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def test_each_prompt_has_the_mean_distance_over_its_pairs():
    levels = [(0, 51, 255), (10, 10, 10)]
    by_hand = [np.mean([abs(a - b) / 255 for a, b in itertools.combinations(grays, 2)]) for grays in levels]
    spread = Lpips(mean_difference).spread([[gray(level) for level in grays] for grays in levels])
    np.testing.assert_allclose(spread, by_hand, atol=1e-6)


def test_lpips_is_zero_for_equal_images_and_positive_for_different_ones():
    torchmetrics = pytest.importorskip("torchmetrics.image.lpip")
    pytest.importorskip("torchvision", exc_type=Exception)
    try:
        metric = torchmetrics.LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    except OSError:
        pytest.skip("AlexNet's weights cannot be downloaded")
    noise = np.random.default_rng(0).integers(0, 255, (2, MIN_SIDE, MIN_SIDE, 3), dtype=np.uint8)
    first, second = map(Image.fromarray, noise)
    same, other = Lpips(metric).spread([[first, first], [first, second]])
    assert same == pytest.approx(0, abs=1e-6)
    assert other > 0.01
