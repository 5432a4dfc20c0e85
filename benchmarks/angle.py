"""Which numbers of a run tell when to stop: `python benchmarks/angle.py`, about 20 minutes on a free core.

    --subjects tiger robot teapot     folders in assets/subjects
    --rates 0.05 0.15                 learning rates; each has a training seed of its own
    --steps 200 --every 25            steps of a run, and from one checkpoint to the next
    --output_dir outputs/angle
    --smoke                           everything at a tiny size, to check that the benchmark runs

Trains each subject at each rate without prior preservation, and measures each checkpoint: gap closed, backgrounds and
class drift. First table: rank correlations of what a run knows (steps, mean rotation angle, training loss, validation
loss) with what was measured. Second table: the score (gap closed + backgrounds − class drift) of the checkpoint that a
rule picks; thresholds are those that were best for the other subjects. Each checkpoint writes a file, so a second call
resumes the benchmark.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from measure import describe_machine, print_table
from methods import SUBJECTS, balance, cached, held_out, instruments, plan_for
from PIL import Image

from hra_diffusion.metrics import EvaluationPlan, Generations, measure_subject
from hra_diffusion.pipelines import disable_hra, load_hra_weights, load_pipeline
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import EMBEDDED_BASE, embedded_defaults
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.outputs.log import read_log
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run

KNOWN = ("steps", "angle", "training loss", "validation loss")
MEASURED = ("gap closed", "backgrounds", "class drift", "score")
Row = Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """One training run of the benchmark."""

    subject: str
    seed: int
    rate: float
    options: argparse.Namespace = field(compare=False)

    @property
    def folder(self) -> Path:
        return self.options.output_dir / self.subject / f"{self.rate:g}"

    @property
    def steps(self) -> list[int]:
        return list(range(self.options.every, self.options.steps + 1, self.options.every))

    def prepare(self) -> Run:
        values = {
            "instance_data_dir": SUBJECTS / self.subject,
            "output_dir": self.folder,
            "with_prior_preservation": False,
            "max_train_steps": self.options.steps,
            "checkpointing_steps": self.options.every,
            "validate_every_n_steps": self.options.every,
            "learning_rate": self.rate,
            "num_inference_steps": self.options.inference_steps,
            "seed": self.seed,
            "resume_from_checkpoint": "latest",
            "report_to": "none",
        }
        return prepare_run(DreamBooth(with_values(embedded_defaults(DreamBoothConfig, "embedded.toml"), values)))

    def rows(self) -> list[Row]:
        """Return what is known and measured of each checkpoint; train, if a checkpoint has not been measured."""
        files = [self.folder / f"measured-{step}.json" for step in self.steps]
        if not all(file.exists() for file in files):
            run = self.prepare()
            for _ in run.steps():
                pass
            plan = plan_for(run, self.options)
            for step, file in zip(self.steps, files, strict=True):
                cached(file, lambda step=step: self._measure(step, plan))
        records = {record.step: record for record in read_log(self.folder / "log.jsonl")}
        rows: list[Row] = []
        for step, file in zip(self.steps, files, strict=True):
            last = [records[number].losses["instance"] for number in range(step - self.options.every + 1, step + 1)]
            known = (step, records[step].angles["unet"], np.mean(last), records[step].validation_loss or np.nan)
            measured = json.loads(file.read_text("utf-8"))
            rows.append({**dict(zip(KNOWN, map(float, known), strict=True)), **measured, "score": balance(measured)})
        return rows

    def _measure(self, step: int, plan: EvaluationPlan) -> dict[str, float]:
        pipe = load_pipeline(str(EMBEDDED_BASE))
        load_hra_weights(pipe, self.folder / f"checkpoint-{step}")
        generations = Generations(plan=plan, images={"base": base_images(self.subject, plan, pipe)})
        for _ in generations.generate_mode("adapter", pipe):
            pass
        report = measure_subject(generations, held_out(self.subject), instruments())
        return {
            "gap closed": report.value("gap closed"),
            "backgrounds": report.value("background accuracy"),
            "class drift": report.value("drift, class"),
        }


BASE_IMAGES: dict[str, dict[str, list[Image.Image]]] = {}


def base_images(subject: str, plan: EvaluationPlan, pipe: Pipeline) -> dict[str, list[Image.Image]]:
    """Return the base model's images of a subject's plan, generated once."""
    if subject not in BASE_IMAGES:
        generations = Generations(plan=plan)
        for _ in generations.generate_mode("base", pipe, disable_hra):
            pass
        BASE_IMAGES[subject] = generations.images["base"]
    return BASE_IMAGES[subject]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; ties get their mean rank."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values)
        return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])

    a, b = ranks(first), ranks(second)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else float("nan")


def correlations(runs: Mapping[Training, list[Row]]) -> list[list[object]]:
    """Return a row for each known number: its correlations over all checkpoints, and the mean of those in a run."""
    everything = [row for rows in runs.values() for row in rows]
    table: list[list[object]] = []
    for known in KNOWN:
        cells: list[object] = [known]
        for measured in MEASURED:
            pooled = rank_correlation([row[known] for row in everything], [row[measured] for row in everything])
            within = [
                rank_correlation([row[known] for row in rows], [row[measured] for row in rows])
                for rows in runs.values()
            ]
            cells.append(f"{pooled:+.2f} ({np.nanmean(within):+.2f})")
        table.append(cells)
    return table


def picks(runs: Mapping[Training, list[Row]]) -> list[list[object]]:
    """Return a row for each rule: the mean score, gap closed and drift of the checkpoints that it picks."""

    def reaching(known: str, limit: float) -> Callable[[list[Row]], Row]:
        return lambda rows: next((row for row in rows if row[known] >= limit), rows[-1])

    def best_limit(known: str, others: list[list[Row]]) -> float:
        limits = sorted({row[known] for rows in others for row in rows})
        return max(limits, key=lambda limit: np.mean([reaching(known, limit)(rows)["score"] for rows in others]))

    rules: dict[str, Callable[[Training, list[Row]], Row]] = {"the last step": lambda _, rows: rows[-1]}
    for known, title in (("steps", "a number of steps"), ("angle", "a rotation angle")):

        def reached(training: Training, rows: list[Row], known: str = known) -> Row:
            others = [other for key, other in runs.items() if key.subject != training.subject] or [rows]
            return reaching(known, best_limit(known, others))(rows)

        rules[title] = reached
    for known in ("training loss", "validation loss"):
        rules[f"least {known}"] = lambda _, rows, known=known: min(rows, key=lambda row: row[known])
    rules["largest gap closed"] = lambda _, rows: max(rows, key=lambda row: row["gap closed"])
    rules["best score (needs all images)"] = lambda _, rows: max(rows, key=lambda row: row["score"])
    table: list[list[object]] = []
    for title, rule in rules.items():
        chosen = [rule(training, rows) for training, rows in runs.items()]
        table.append([title, *(float(np.mean([row[name] for row in chosen])) for name in MEASURED)])
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="*", default=["tiger", "robot", "teapot"])
    parser.add_argument("--rates", nargs="*", type=float, default=[0.05, 0.15])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--inference_steps", type=int, default=15)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/angle"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.subjects, options.rates, options.steps, options.every = ["tiger"], [0.1], 2, 1
        options.contexts = options.seeds = 1
        options.inference_steps = 2
    return options


def main() -> None:
    options = parse()
    print(describe_machine())
    trainings = [
        Training(subject, seed, rate, options)
        for seed, rate in enumerate(options.rates)
        for subject in options.subjects
    ]
    runs = {training: training.rows() for training in trainings}
    for training, rows in runs.items():
        names = (*KNOWN, *MEASURED)
        print_table(
            f"{training.subject}, rate {training.rate:g}", names, [[row[name] for name in names] for row in rows]
        )
    checkpoints = sum(map(len, runs.values()))
    print_table(
        f"Rank correlations over {checkpoints} checkpoints (mean within a run)", ["", *MEASURED], correlations(runs)
    )
    print_table(f"Checkpoints picked in {len(runs)} runs", ["stop at", *MEASURED], picks(runs))


if __name__ == "__main__":
    main()
