"""Does `hra-diffusion compare` forecast how much two subjects harm each other? `python benchmarks/clash.py`, an hour.

    --subjects tiger robot …    folders in assets/subjects; all by default, 15 pairs
    --words own                 a trigger word for each subject, or "same" for "sks" for all
    --contexts 8 --seeds 2      images for each subject: contexts · seeds
    --output_dir outputs/composition
    --smoke                     three subjects at a tiny size, to check that the benchmark runs

The adapters are those of composition.py, in the same folder; missing ones are trained. For each pair of subjects, both
adapters are active as a product, and the prompt names one of them. The fidelity lost is the gap closed alone minus that
with the other one, averaged over both subjects. The table has the rank correlation (Spearman) of the lost fidelity with
each number of compare. Every measurement writes a file, so a second call resumes the benchmark.
"""

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
from composition import OUTPUT_DIR, Composition
from measure import describe_machine, print_table
from methods import cached, subject_parser

from hra_diffusion.formats.comparison import AdapterComparison, compare_adapters

FORECASTS: Mapping[str, Callable[[AdapterComparison], float]] = {
    "commutator norm": lambda comparison: comparison.commutator,
    "commutator norm / norms": lambda comparison: comparison.commutator / float(np.prod(comparison.norms)),
    "overlap of spans": lambda comparison: comparison.overlap,
    "smallest principal angle, negative": lambda comparison: -comparison.smallest_angle,
    "|cosine|": lambda comparison: abs(comparison.cosine),
    "product of norms": lambda comparison: float(np.prod(comparison.norms)),
}
WORTH = 0.5
"""Rank correlation below which a forecast is of no use."""


class Pairs(Composition):
    """Fidelity of each subject alone, and beside one other subject."""

    def fidelity(self, subject: str, other: str | None = None) -> float:
        """Return the gap closed of a subject's images."""
        path = self.folder / "pairs" / subject / f"{other or 'alone'}.json"
        names = [subject, other] if other else [subject]
        return cached(path, lambda: self.scores("HRA", subject, names, False))["gap closed"]

    def lost(self, one: str, other: str) -> float:
        """Return the fidelity that a pair loses, averaged over both subjects."""
        losses = [self.fidelity(a) - self.fidelity(a, b) for a, b in ((one, other), (other, one))]
        return float(np.mean(losses))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation; equal values share their mean rank."""
    ranks = [
        np.array([(value > values).sum() + ((value == values).sum() - 1) / 2 for value in values]) for values in (x, y)
    ]
    return float(np.corrcoef(ranks)[0, 1]) if all(rank.std() for rank in ranks) else float("nan")


def main() -> None:
    parser = subject_parser(__doc__, OUTPUT_DIR)
    parser.add_argument("--words", choices=("own", "same"), default="own")
    options = parser.parse_args()
    if options.smoke:
        options.subjects = ["tiger", "robot", "teapot"]
        options.steps = options.contexts = options.seeds = 1
    print(describe_machine())
    pairs = Pairs(options.words, options)
    folders = {subject: pairs.train("HRA", subject) for subject in options.subjects}
    names = list(combinations(options.subjects, 2))
    lost = np.array([pairs.lost(*pair) for pair in names])
    comparisons = [compare_adapters(folders[one], folders[other]) for one, other in names]
    forecasts = {name: np.array([forecast(c) for c in comparisons]) for name, forecast in FORECASTS.items()}
    rows = [
        [" and ".join(pair), value, *(forecast[i] for forecast in forecasts.values())]
        for i, (pair, value) in enumerate(zip(names, lost, strict=True))
    ]
    print_table(f"{len(names)} pairs", ["pair", "fidelity lost", *forecasts], rows)
    correlations = {name: rank_correlation(forecast, lost) for name, forecast in forecasts.items()}
    verdicts = [[name, value, "yes" if value >= WORTH else "no"] for name, value in correlations.items()]
    print_table("rank correlation with the fidelity lost", ["forecast", "correlation", f"≥ {WORTH}"], verdicts)


if __name__ == "__main__":
    main()
