"""Metrics of unit vectors: cosines between images, and between images and texts.

Subject fidelity is the mean cosine to real images of the subject (CLIP-I, DINO) and prompt fidelity the cosine to the
prompt (CLIP-T), as in DreamBooth (Ruiz et al., arXiv 2208.12242). Every function returns one value per unit.
"""

from hra_diffusion.metrics.bootstrap import FloatArray


def fidelity(images: FloatArray, references: FloatArray) -> FloatArray:
    """Return the mean cosine of each image to all references: (n, d), (m, d) → (n,), in −1 … 1."""
    return (images @ references.T).mean(axis=1)


def agreement(references: FloatArray) -> FloatArray:
    """Return the mean cosine of each reference to the others: (m ≥ 2, d) → (m,).

    A perfect image could reach this fidelity.
    """
    cosines = references @ references.T
    return (cosines.sum(axis=1) - cosines.diagonal()) / (len(references) - 1)


def similarity(images: FloatArray, partners: FloatArray) -> FloatArray:
    """Return the cosine of each image to its partner, a text or an image: (n, d), (n, d) → (n,)."""
    return (images * partners).sum(axis=1)


def drift(adapted: FloatArray, base: FloatArray) -> FloatArray:
    """Return 1 − cosine of each image to the base's of the same prompt and seed: (n, d), (n, d) → (n,)."""
    return 1 - similarity(adapted, base)


def spread(images: FloatArray) -> FloatArray:
    """Return the mean distance, 1 − cosine, between a prompt's images: (prompts, seeds ≥ 2, d) → (prompts,)."""
    seeds = images.shape[1]
    sums = images.sum(axis=1)
    cosines = ((sums**2).sum(axis=1) - (images**2).sum(axis=(1, 2))) / (seeds * (seeds - 1))
    return 1 - cosines


def gap_closed(scores: FloatArray, real: FloatArray) -> FloatArray:
    """Return (adapter − base) / (real − base) of the means: the share of the gap to real images.

    This is a statistic for `bootstrap`.

    Args:
        scores: each unit's score with the adapter and without, (resamples, units, 2).
        real: scores of real images, (resamples, references).
    """
    adapter, base = scores.mean(axis=1).T
    return (adapter - base) / (real.mean(axis=1) - base)
