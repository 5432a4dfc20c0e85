"""The default run of a subject with one setting changed: `python benchmarks/defaults.py`, hours on a core.

    --subjects tiger robot …    folders in assets/subjects; all by default
    --changes "rank 4" …        names in CHANGES; all by default
    --training_seeds 0 1 2      a run for each
    --steps 150
    --contexts 4 --seeds 2      images for each measurement: contexts · seeds of the subject
    --num_inference_steps 15
    --output_dir outputs/defaults
    --smoke                     everything at a tiny size, to check that the benchmark runs

The run is that of `train_dreambooth_hra.py` on the embedded base. Every run writes a file, so a second call resumes the
benchmark.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from measure import describe_machine, print_table, trained
from methods import SCORES, Base, cached, prepared_run, scores_of_run, subject_parser

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "the defaults": {},
    "rank 4": {"rank": 4},
    "rank 16": {"rank": 16},
    "learning rate 0.05": {"learning_rate": 0.05},
    "attention layers alone": {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"]},
    "UNet alone": {"train_text_encoder": False},
    "λ = 1e-3": {"orthogonality_weight": 1e-3},
    "no class images": {"with_prior_preservation": False},
    "class images as targets": {"prior_target": "image"},
}
"""Settings of the command by the name of a row."""


def measure(change: str, subject: str, seed: int, base: Base, options: argparse.Namespace) -> dict[str, float]:
    """Train the run with a change on a subject, and measure its images."""
    run = prepared_run(subject, options, seed=seed, **CHANGES[change])
    trainer = run.start().trainer
    for _ in trainer.steps(options.steps):
        pass
    return {"parameters": float(trained(trainer.loss)), **scores_of_run(run, subject, base, options)}


def main() -> None:
    parser = subject_parser(__doc__, "outputs/defaults")
    parser.set_defaults(steps=150, contexts=4, num_inference_steps=15)
    parser.add_argument("--changes", nargs="*", choices=list(CHANGES), default=list(CHANGES))
    parser.add_argument("--training_seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if options.smoke:
        options.subjects, options.changes, options.training_seeds = ["tiger"], ["rank 4"], [0]
        options.steps = options.contexts = options.seeds = 1
    print(describe_machine())
    base, rows = Base(options), []
    for change in options.changes:
        results: list[dict[str, float]] = []
        for seed, subject in product(options.training_seeds, options.subjects):
            path = options.output_dir / subject / f"{change}, seed {seed}.json"
            results.append(cached(path, partial(measure, change, subject, seed, base, options)))
            print(f"{change}, {subject}, seed {seed}", flush=True)
        means = [float(np.mean([result[name] for result in results])) for name in SCORES]
        rows.append([change, f"{results[0]['parameters']:,.0f}", *means])
    size = f"{len(options.subjects)} subjects, {len(options.training_seeds)} training seeds, {options.steps} steps"
    print_table(f"One setting changed: {size}", ["", "parameters", *SCORES], rows)


if __name__ == "__main__":
    main()
