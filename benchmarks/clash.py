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

import argparse
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from composition import Composition
from measure import describe_machine, print_table
from methods import SUBJECTS, cached, plan_for, scores_of

from hra_diffusion.formats.comparison import AdapterComparison, compare_adapters
from hra_diffusion.metrics import Generations

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
        return cached(path, lambda: self._scores(subject, other))["gap closed"]

    def _scores(self, subject: str, other: str | None) -> dict[str, float]:
        pipe = self.pipeline("HRA")
        generations = Generations(
            plan=plan_for(self.run(subject), self.options), images={"base": self.base_images(subject)}
        )
        with self._activated(pipe, "HRA", [subject, other] if other else [subject], False):
            for _ in generations.generate_mode("adapter", pipe):
                pass
        return scores_of(generations, subject)

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="*", default=sorted(folder.name for folder in SUBJECTS.iterdir()))
    parser.add_argument("--words", choices=("own", "same"), default="own")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/composition"))
    parser.add_argument("--smoke", action="store_true")
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
