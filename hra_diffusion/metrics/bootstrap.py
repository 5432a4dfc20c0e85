"""Bootstrap intervals (Efron 1979): how far a number would move, had other images been drawn.

Units (images, or prompts where images of one prompt go into one value) are drawn anew with replacement; the
interval spans the middle 95 % of the values that the statistic then takes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_NUMBERS = 10_000_000
"""How many are held at once."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval, which a single unit does not have."""

    value: float
    low: float | None
    high: float | None
    units: int
    """How many images or prompts it was taken over."""

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


def mean(sample: FloatArray) -> FloatArray:
    """The statistic that most numbers are: the mean over the units, axis 1."""
    return sample.mean(axis=1)


def bootstrap(*samples: npt.ArrayLike, statistic: Callable[..., FloatArray] = mean, seed: int = 0) -> Estimate:
    """Estimate a statistic of one or more independent samples.

    Args:
        samples: each of shape (units, …); what belongs together (an image with and without an adapter) is one unit.
        statistic: maps arrays of shape (resamples, units, …), one a sample, to (resamples,).
        seed: of the resampling.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    assert all(len(array) for array in arrays), "a sample is empty"
    value = float(statistic(*(array[None] for array in arrays))[0])
    units = min(len(array) for array in arrays)
    if units < 2:
        return Estimate(value=value, low=None, high=None, units=units)
    rng = np.random.default_rng(seed)
    picks = [rng.integers(len(array), size=(RESAMPLES, len(array))) for array in arrays]
    at_once = max(1, _NUMBERS // sum(array.size for array in arrays))
    drawn = np.concatenate(
        [
            statistic(*(array[each[start : start + at_once]] for array, each in zip(arrays, picks, strict=True)))
            for start in range(0, RESAMPLES, at_once)
        ]
    )
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high), units=units)
