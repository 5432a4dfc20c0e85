"""Fidelity against drift over rates, steps and strengths: `python benchmarks/frontier.py`, a night on two cores.

    --subjects tiger robot …      folders in assets/subjects; all by default
    --methods "HRA, λ = 0" …      the methods of methods.py; all by default
    --factors 1 0.25 4            learning rates, as multiples of each method's best rate in methods.py
    --at 75 150                   steps after which a run is measured
    --strengths 0.7 1             strengths of the adapter in each measurement
    --training_seeds 0 1 2        a run for each
    --rank 8
    --contexts 4 --seeds 2        images for each measurement: contexts · seeds of the subject
    --num_inference_steps 15
    --output_dir outputs/frontier
    --smoke                       everything at a tiny size, to check that the benchmark runs

One measurement says little: with every method, a smaller strength or fewer steps give less drift and less of the
subject. So the first table compares the class drift at equal fidelity: of all points (rate, steps, strength) with at
least that gap closed in the mean over subjects and training seeds, the one with the least drift. The interval resamples
subjects and training seeds. The second table has the points that no other point of the method beats in both numbers,
the third what other rates leave. Every run writes a file, so a second call resumes the benchmark.
"""

import argparse
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from measure import describe_machine, print_table, trained
from methods import (
    Base,
    Components,
    cached,
    make_trainer,
    methods,
    prepared_run,
    scores_of_run,
    subject_parser,
)
from peft.tuners.lora import LoraLayer
from torch import nn

from hra_diffusion import HRAModel
from hra_diffusion.metrics.bootstrap import bootstrap

RATES: Mapping[str, float] = {
    "HRA, λ = 0": 7e-3,
    "HRA, λ = 1e-3": 7e-3,
    "HRA with magnitudes": 7e-3,
    "LoRA, same rank": 1.5e-3,
    "LoRA, same parameters": 1.5e-3,
    "DoRA, same rank": 1.5e-3,
    "OFT": 1.5e-3,
    "full fine-tuning": 3e-4,
}
"""The best rates of methods.py; those of magnitudes are HRA's, of DoRA and the smaller LoRA LoRA's."""

FIDELITIES = (0.8, 0.9)
"""Shares of the gap closed at which the drift is compared."""

Point = tuple[float, int, float]
"""Factor of the rate, steps and strength."""
Scores = Mapping[str, float]


@contextmanager
def at_strength(components: Components, base: Mapping[str, list[torch.Tensor]], strength: float) -> Generator[None]:
    """Use trained components at a strength within a `with` block.

    LoRAs and DoRAs scale their update, reflections their angles, and fine-tuned weights move towards the base's.
    """
    with ExitStack() as stack:
        for name, component in components.items():
            if strength != 1.0:
                stack.enter_context(_scaled(component, base.get(name, []), strength))
            stack.callback(component.train, component.training)
            component.eval()
        yield


@contextmanager
def _scaled(component: nn.Module, base: Sequence[torch.Tensor], strength: float) -> Generator[None]:
    if isinstance(component, HRAModel):
        component.set_strength(strength)
        yield
        component.set_strength(1.0)
        return
    if layers := [module for module in component.modules() if isinstance(module, LoraLayer)]:
        for layer in layers:
            layer.set_scale("default", strength)
        yield
        for layer in layers:
            layer.set_scale("default", 1.0)
        return
    weights = [parameter.data for parameter in component.parameters()]
    for parameter, first, last in zip(component.parameters(), base, weights, strict=True):
        parameter.data = first.lerp(last, strength)
    yield
    for parameter, last in zip(component.parameters(), weights, strict=True):
        parameter.data = last


def measure(
    method: str, subject: str, seed: int, factor: float, base: Base, options: argparse.Namespace
) -> dict[str, float]:
    """Train a method on a subject, and measure it after some steps at each strength; return scores by :func:`key`."""
    run = prepared_run(subject, options, seed=seed)
    kind = methods(options.rank, seed)[method]
    components, trainer = make_trainer(run, kind, RATES[method] * factor, options)
    first = {
        name: [weight.detach().clone() for weight in component.parameters()]
        for name, component in components.items()
        if method == "full fine-tuning"
    }
    scores: dict[str, Any] = {"parameters": float(trained(trainer.loss))}
    for record in trainer.steps(max(options.at)):
        if record.step in options.at:
            for strength in strengths_of(method, options.strengths):
                with at_strength(components, first, strength):
                    scores[key(record.step, strength)] = scores_of_run(run, subject, base, options)
    return scores


def strengths_of(method: str, strengths: Iterable[float]) -> list[float]:
    """Return the strengths that a method can have: PEFT's OFT has none but 1."""
    return [1.0] if method == "OFT" else list(strengths)


def key(steps: int, strength: float) -> str:
    return f"{steps}, {strength:g}"


class Measured:
    """All measurements of one method.

    Args:
        method: its name.
        runs: the scores of each factor of the rate, subject and training seed.
        options: the command's options.
    """

    def __init__(
        self, method: str, runs: Mapping[tuple[float, str, int], Mapping[str, Any]], options: argparse.Namespace
    ) -> None:
        self.method, self._runs, self._options = method, runs, options
        self.parameters: float = next(iter(runs.values()))["parameters"]
        strengths = strengths_of(method, options.strengths)
        self.points: list[Point] = list(product(options.factors, options.at, strengths))

    def values(self, point: Point, name: str) -> np.ndarray:
        """Return a score of each subject (rows) and training seed (columns) at a point."""
        factor, steps, strength = point
        return np.array(
            [
                [self._runs[factor, subject, seed][key(steps, strength)][name] for seed in self._options.training_seeds]
                for subject in self._options.subjects
            ]
        )

    def mean(self, point: Point, name: str) -> float:
        """Return the mean of a score at a point; NaN where a run has none."""
        return float(self.values(point, name).mean())

    def least_drift(self, fidelity: float) -> Point | None:
        """Return the point with the least class drift among those with at least a gap closed."""
        reached = [point for point in self.points if self.mean(point, "gap closed") >= fidelity]
        return min(reached, key=lambda point: self.mean(point, "class drift"), default=None)

    def frontier(self) -> list[Point]:
        """Return the points that no other point beats in both numbers, by falling drift."""
        best, found = -np.inf, list[Point]()
        for point in sorted(self.points, key=lambda point: self.mean(point, "class drift")):
            if self.mean(point, "gap closed") > best:
                best = self.mean(point, "gap closed")
                found.append(point)
        return found


def interval(values: np.ndarray) -> str:
    """Return the mean over subjects and seeds with its 95 % interval."""
    return str(bootstrap(values.ravel()))


def describe(point: Point) -> str:
    factor, steps, strength = point
    return f"rate × {factor:g}, {steps} steps, strength {strength:g}"


def print_results(results: Sequence[Measured], options: argparse.Namespace) -> None:
    """Print the three tables."""
    size = f"{len(options.subjects)} subjects, {len(options.training_seeds)} training seeds, r = {options.rank}"
    rows: list[list[object]] = []
    for measured in results:
        row: list[object] = [measured.method, f"{measured.parameters:,.0f}"]
        for fidelity in FIDELITIES:
            point = measured.least_drift(fidelity)
            row += [interval(measured.values(point, "class drift")), describe(point)] if point else ["–", "not reached"]
        rows.append(row)
    columns = [
        "",
        "parameters",
        *(text for f in FIDELITIES for text in (f"class drift at a gap closed of {f}", "with")),
    ]
    print_table(f"Least drift at equal fidelity: {size}", columns, rows)

    scores = ("gap closed", "class drift", "backgrounds", "other drift")
    rows = [
        [measured.method, describe(point), *(measured.mean(point, name) for name in scores)]
        for measured in results
        for point in measured.frontier()
    ]
    print_table(f"Frontiers: {size}", ["", "point", *scores], rows)

    rows = [
        [measured.method, f"× {factor:g}", *(measured.mean((factor, max(options.at), 1.0), name) for name in scores)]
        for measured in results
        for factor in options.factors
    ]
    print_table(f"Other rates, {max(options.at)} steps: {size}", ["", "rate", *scores], rows)


def parse() -> argparse.Namespace:
    parser = subject_parser(__doc__, "outputs/frontier")
    parser.set_defaults(contexts=4, num_inference_steps=15)
    parser.add_argument("--methods", nargs="*", choices=list(RATES), default=list(RATES))
    parser.add_argument("--factors", nargs="*", type=float, default=[1.0, 0.25, 4.0])
    parser.add_argument("--at", nargs="*", type=int, default=[75, 150])
    parser.add_argument("--strengths", nargs="*", type=float, default=[0.7, 1.0])
    parser.add_argument("--training_seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if options.smoke:
        options.subjects, options.methods, options.training_seeds = ["tiger"], ["HRA, λ = 0"], [0]
        options.factors, options.at, options.strengths = [1.0], [1], [0.5, 1.0]
        options.contexts = options.seeds = 1
    options.steps = max(options.at)
    return options


def main() -> None:
    options = parse()
    print(describe_machine())
    base = Base(options)
    runs: dict[str, dict[tuple[float, str, int], Mapping[str, Any]]] = {name: {} for name in options.methods}
    for factor, seed, subject, method in product(
        options.factors, options.training_seeds, options.subjects, options.methods
    ):
        path = options.output_dir / subject / method / f"rate {factor:g}, seed {seed}.json"
        compute: Callable[[], dict[str, float]] = partial(measure, method, subject, seed, factor, base, options)
        runs[method][factor, subject, seed] = cached(path, compute)
        print(f"{method}, {subject}, rate × {factor:g}, seed {seed}", flush=True)
    print_results([Measured(method, found, options) for method, found in runs.items()], options)


if __name__ == "__main__":
    main()
