"""Bootstrap intervals (Efron 1979): the uncertainty of a number from a sample of images.

Units (images, or prompts where the images of a prompt give one value) are resampled with replacement; the interval
spans the middle 95 % of the statistic's values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_MAX_NUMBERS = 10_000_000
"""Limit of the numbers in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval; a single unit has none."""

    value: float
    low: float | None
    high: float | None
    units: int
    """Number of images or prompts in the sample."""

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


def mean(sample: FloatArray) -> FloatArray:
    """Return the mean over the units, axis 1: the usual statistic."""
    return sample.mean(axis=1)


def bootstrap(*samples: npt.ArrayLike, statistic: Callable[..., FloatArray] = mean, seed: int = 0) -> Estimate:
    """Estimate a statistic of one or more independent samples.

    Args:
        samples: arrays of shape (units, …); a pair (an image with and without an adapter) is one unit.
        statistic: a map from arrays of shape (resamples, units, …), one per sample, to (resamples,).
        seed: seed of the resampling.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    assert all(len(array) for array in arrays), "a sample is empty"
    value = float(statistic(*(array[None] for array in arrays))[0])
    units = min(len(array) for array in arrays)
    if units < 2:
        return Estimate(value=value, low=None, high=None, units=units)
    rng = np.random.default_rng(seed)
    picks = [rng.integers(len(array), size=(RESAMPLES, len(array))) for array in arrays]
    at_once = max(1, _MAX_NUMBERS // sum(array.size for array in arrays))
    values = np.concatenate(
        [
            statistic(*(array[pick[start : start + at_once]] for array, pick in zip(arrays, picks, strict=True)))
            for start in range(0, RESAMPLES, at_once)
        ]
    )
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high), units=units)
