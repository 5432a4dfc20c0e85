"""What the metrics compute, on unit vectors: cosines between pictures, and between pictures and words.

Subject fidelity is the mean cosine to real pictures of the subject (CLIP-I, DINO) and prompt fidelity the cosine to the
prompt (CLIP-T), as in DreamBooth (Ruiz et al., arXiv 2208.12242). Every function returns one value a unit.
"""

from hra_diffusion.metrics.bootstrap import FloatArray


def fidelity(pictures: FloatArray, references: FloatArray) -> FloatArray:
    """Mean cosine of each picture to all references: (n, d), (m, d) → (n,), in −1 … 1."""
    return (pictures @ references.T).mean(axis=1)


def agreement(references: FloatArray) -> FloatArray:
    """Mean cosine of each reference to the others, what a perfect picture could reach: (m ≥ 2, d) → (m,)."""
    cosines = references @ references.T
    return (cosines.sum(axis=1) - cosines.diagonal()) / (len(references) - 1)


def paired(pictures: FloatArray, partners: FloatArray) -> FloatArray:
    """Cosine of each picture to its own partner, a text or another picture: (n, d), (n, d) → (n,)."""
    return (pictures * partners).sum(axis=1)


def drift(adapted: FloatArray, base: FloatArray) -> FloatArray:
    """How far each picture moved from the base's of the same prompt and seed, 1 − cosine: (n, d), (n, d) → (n,)."""
    return 1 - paired(adapted, base)


def spread(pictures: FloatArray) -> FloatArray:
    """Mean distance, 1 − cosine, between pictures of a prompt: (prompts, seeds ≥ 2, d) → (prompts,)."""
    seeds = pictures.shape[1]
    sums = pictures.sum(axis=1)
    cosines = ((sums**2).sum(axis=1) - (pictures**2).sum(axis=(1, 2))) / (seeds * (seeds - 1))
    return 1 - cosines


def gap_closed(scores: FloatArray, real: FloatArray) -> FloatArray:
    """(adapter − base) / (real − base) of the means, the share of the way to real pictures; a bootstrap statistic.

    Args:
        scores: (resamples, units, 2), each unit's score with the adapter and without.
        real: (resamples, references).
    """
    adapter, base = scores.mean(axis=1).T
    return (adapter - base) / (real.mean(axis=1) - base)
