"""Laws of the scores, and coverage of the intervals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hra_diffusion.metrics import scores
from hra_diffusion.metrics.bootstrap import bootstrap


def unit_rows(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_an_interval_covers_the_true_mean_as_often_as_its_level():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        estimate = bootstrap(rng.exponential(size=40), seed=trial)
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.88 < covered / 300 < 0.98


def test_an_interval_narrows_with_the_square_root_of_the_units():
    rng = np.random.default_rng(0)
    few, many = (bootstrap(rng.normal(size=count)) for count in (100, 1600))
    assert 3 < (few.high - few.low) / (many.high - many.low) < 5.3


def test_a_bootstrap_is_reproducible_with_its_seed():
    sample = np.random.default_rng(0).normal(size=20)
    assert bootstrap(sample) == bootstrap(sample) != bootstrap(sample, seed=1)


def test_equal_values_have_an_empty_interval_and_one_value_has_none():
    assert str(bootstrap([0.5] * 4)) == "0.500 [0.500, 0.500]"
    assert str(bootstrap([0.5])) == "0.500"


def test_images_equal_to_the_real_one_have_fidelity_one():
    real = unit_rows(1, 8)
    assert scores.fidelity(real.repeat(3, axis=0), real) == pytest.approx(1, abs=1e-15)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99))
def test_agreement_is_the_mean_cosine_to_the_other_images(count, width, seed):
    rows = unit_rows(count, width, seed=seed)
    by_hand = [np.mean([rows[i] @ rows[j] for j in range(count) if j != i]) for i in range(count)]
    np.testing.assert_allclose(scores.agreement(rows), by_hand, atol=1e-12)


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))
def test_spread_is_the_mean_distance_over_all_pairs(prompts, seeds, seed):
    vectors = unit_rows(prompts, seeds, 6, seed=seed)
    by_hand = [np.mean([1 - a @ b for a, b in itertools.combinations(rows, 2)]) for rows in vectors]
    np.testing.assert_allclose(scores.spread(vectors), by_hand, atol=1e-12)


def test_equal_images_have_no_drift_and_no_spread():
    vectors = unit_rows(5, 8)
    np.testing.assert_allclose(scores.drift(vectors, vectors), 0, atol=1e-15)
    np.testing.assert_allclose(scores.spread(vectors[:, None].repeat(3, axis=1)), 0, atol=1e-15)


@pytest.mark.parametrize(("adapter", "closed"), [(0.2, 0.0), (0.8, 1.0), (0.5, 0.5), (-0.1, -0.5)])
def test_gap_closed_is_zero_for_the_base_and_one_for_real_images(adapter, closed):
    units = np.array([[adapter - 0.1, 0.1], [adapter + 0.1, 0.3]])
    assert bootstrap(units, [0.7, 0.9], statistic=scores.gap_closed).value == pytest.approx(closed)


def test_paired_units_give_gap_closed_a_narrow_interval():
    base = np.random.default_rng(0).uniform(0, 0.4, 30)
    together = np.stack([base + 0.3, base], axis=1)
    apart = np.stack([np.random.default_rng(1).permutation(base) + 0.3, base], axis=1)
    paired, crossed = (bootstrap(units, [0.8, 0.8], statistic=scores.gap_closed) for units in (together, apart))
    assert paired.high - paired.low < crossed.high - crossed.low
