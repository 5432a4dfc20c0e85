"""The distance is that of Gaussians whose distance is known, and FID's encoder is read only where it is numbers."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from hra_diffusion.errors import ModelError
from hra_diffusion.metrics.frechet import frechet_distance, load_inception

RNG = np.random.default_rng(0)


def test_equal_sets_are_at_no_distance_and_shifted_ones_at_the_shift_s_square():
    features = RNG.normal(size=(40, 6))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + np.arange(6)) == pytest.approx(np.sum(np.arange(6) ** 2))


def test_scaled_sets_differ_by_what_their_deviations_do():
    features = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4))
    features -= features.mean(0)
    variance = np.trace(np.cov(features, rowvar=False))
    assert frechet_distance(features, 3 * features) == pytest.approx((3 - 1) ** 2 * variance)


def test_covariances_that_do_not_commute_have_the_formula_s_distance():
    from scipy.linalg import sqrtm

    one, other = (RNG.normal(size=(30, 5)) @ RNG.normal(size=(5, 5)) for _ in range(2))
    first, second = (np.cov(features, rowvar=False) for features in (one, other))
    by_hand = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(by_hand)


def test_without_its_package_or_its_weights_it_says_so(monkeypatch, tmp_path):
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
