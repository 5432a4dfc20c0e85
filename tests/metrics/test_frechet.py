"""The Fréchet distance of Gaussians with a known distance; FID's weights are refused if they hold code."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from hra_diffusion.errors import ModelError
from hra_diffusion.metrics.frechet import frechet_distance, load_inception

RNG = np.random.default_rng(0)


def test_the_distance_of_equal_sets_is_zero_and_of_shifted_ones_the_squared_shift():
    features = RNG.normal(size=(40, 6))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + np.arange(6)) == pytest.approx(np.sum(np.arange(6) ** 2))


def test_the_distance_of_scaled_sets_follows_from_their_standard_deviations():
    features = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4))
    features -= features.mean(0)
    variance = np.trace(np.cov(features, rowvar=False))
    assert frechet_distance(features, 3 * features) == pytest.approx((3 - 1) ** 2 * variance)


def test_the_distance_for_covariances_that_do_not_commute_equals_the_formula():
    from scipy.linalg import sqrtm

    one, other = (RNG.normal(size=(30, 5)) @ RNG.normal(size=(5, 5)) for _ in range(2))
    first, second = (np.cov(features, rowvar=False) for features in (one, other))
    by_hand = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(by_hand)


def test_missing_packages_and_unusable_weights_are_errors(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModelError, match=r"FID needs torch-fidelity.*hra-diffusion\[metrics\]"):
        load_inception()
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.feature_extractor_inceptionv3 = module
    module.URL_INCEPTION_V3 = "https://somewhere/weights.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError, match=r"which are not at .*weights\.pth"):
        load_inception()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(ModelError, match="cannot be used"):
        load_inception()
