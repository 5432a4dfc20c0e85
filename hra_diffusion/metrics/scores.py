"""What the metrics compute, on unit vectors: cosines between images, and between images and words.

Subject fidelity is the mean cosine to real images of the subject (CLIP-I, DINO) and prompt fidelity the cosine to the
prompt (CLIP-T), as in DreamBooth (Ruiz et al., arXiv 2208.12242). Every function returns one value a unit.
"""

from hra_diffusion.metrics.bootstrap import FloatArray


def fidelity(images: FloatArray, references: FloatArray) -> FloatArray:
    """Mean cosine of each image to all references: (n, d), (m, d) → (n,), in −1 … 1."""
    return (images @ references.T).mean(axis=1)


def agreement(references: FloatArray) -> FloatArray:
    """Mean cosine of each reference to the others, what a perfect image could reach: (m ≥ 2, d) → (m,)."""
    cosines = references @ references.T
    return (cosines.sum(axis=1) - cosines.diagonal()) / (len(references) - 1)


def paired(images: FloatArray, partners: FloatArray) -> FloatArray:
    """Cosine of each image to its own partner, a text or another image: (n, d), (n, d) → (n,)."""
    return (images * partners).sum(axis=1)


def drift(adapted: FloatArray, base: FloatArray) -> FloatArray:
    """How far each image moved from the base's of the same prompt and seed, 1 − cosine: (n, d), (n, d) → (n,)."""
    return 1 - paired(adapted, base)


def spread(images: FloatArray) -> FloatArray:
    """Mean distance, 1 − cosine, between images of a prompt: (prompts, seeds ≥ 2, d) → (prompts,)."""
    seeds = images.shape[1]
    sums = images.sum(axis=1)
    cosines = ((sums**2).sum(axis=1) - (images**2).sum(axis=(1, 2))) / (seeds * (seeds - 1))
    return 1 - cosines


def gap_closed(scores: FloatArray, real: FloatArray) -> FloatArray:
    """(adapter − base) / (real − base) of the means, the share of the way to real images; a bootstrap statistic.

    Args:
        scores: (resamples, units, 2), each unit's score with the adapter and without.
        real: (resamples, references).
    """
    adapter, base = scores.mean(axis=1).T
    return (adapter - base) / (real.mean(axis=1) - base)
