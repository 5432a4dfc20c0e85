"""HRA against LoRA, OFT and full fine-tuning on DreamBooth: `python benchmarks/methods.py`, hours on two cores.

    --subjects tiger robot …    folders in assets/subjects; all by default
    --steps 200 --rank 8
    --rates 1e-4 3e-4 …         learning rates to try on the first subject
    --output_dir outputs/methods
    --smoke                     everything at a tiny size, to check that the benchmark runs

All methods share base, images, batches, noise, steps and seeds. The best rate on the first subject serves for the other
subjects; best is the largest (gap closed + background accuracy − class drift). For every method a rate is AdamW's: the
change of an entry in one step. Each finished run writes a file, so a second call resumes the benchmark.
"""

import argparse
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from measure import describe_machine, print_table, seconds, trained
from peft import LoraConfig, OFTConfig, get_peft_model
from PIL import Image
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.formats.files import write_file
from hra_diffusion.metrics import (
    EvaluationPlan,
    Generations,
    MetricModels,
    load_metric_models,
    make_evaluation_plan,
    measure_subject,
)
from hra_diffusion.pipelines import adapted_components, disable_hra
from hra_diffusion.resources import DATA
from hra_diffusion.training.config import DreamBoothConfig, ObjectiveConfig, OptimizerConfig
from hra_diffusion.training.config.defaults import EMBEDDED_BASE, embedded_defaults
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.optimizers import build_optimizer
from hra_diffusion.training.loop.trainer import Trainer, trained_weights
from hra_diffusion.training.objective.losses import DenoisingLoss
from hra_diffusion.training.objective.noising import noise_process
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run

SUBJECTS = DATA / "assets" / "subjects"
SCORES = ("gap closed", "backgrounds", "class drift", "other drift")
"""Columns of tables, of the scores of `scores_of`."""
Components = Mapping[str, nn.Module]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A fine-tuning method: its adapter of a component, and λ of the orthogonality penalty."""

    adapt: Callable[[nn.Module, Sequence[str]], nn.Module]
    penalty: float = 0.0


def methods(rank: int, seed: int = 0) -> dict[str, Method]:
    """Return the methods by name, the rows of the tables; the seed is that of their first weights."""

    def hra(model: nn.Module, targets: Sequence[str], **settings: Any) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        return HRAModel(model, HRAConfig(r=rank, target_modules=targets, **settings), generator=generator)

    def peft(kind: Callable[..., Any], model: nn.Module, targets: Sequence[str], **settings: Any) -> nn.Module:
        torch.manual_seed(seed)
        return get_peft_model(model, kind(target_modules=list(targets), **settings))

    def full(model: nn.Module, targets: Sequence[str]) -> nn.Module:
        frozen = [weight.detach().clone() for weight in model.parameters()]
        model.disable_adapter = partial(_with_weights, model, frozen)
        return model.requires_grad_(True)

    def lora_of_equal_size(model: nn.Module, targets: Sequence[str]) -> nn.Module:
        equal = equal_rank(model, targets, rank)
        return peft(LoraConfig, model, targets, r=equal, lora_alpha=equal)

    return {
        "HRA, λ = 0": Method(adapt=hra),
        "HRA, λ = 1e-3": Method(adapt=hra, penalty=1e-3),
        "HRA, anchored Gram–Schmidt": Method(adapt=partial(hra, apply_GS=True)),
        "HRA with magnitudes": Method(adapt=partial(hra, use_magnitude=True)),
        "LoRA, same rank": Method(adapt=partial(peft, LoraConfig, r=rank, lora_alpha=rank)),
        "LoRA, same parameters": Method(adapt=lora_of_equal_size),
        "DoRA, same rank": Method(adapt=partial(peft, LoraConfig, r=rank, lora_alpha=rank, use_dora=True)),
        "OFT": Method(adapt=partial(peft, OFTConfig, r=0, oft_block_size=rank)),
        "full fine-tuning": Method(adapt=full),
    }


def equal_rank(model: nn.Module, targets: Sequence[str], rank: int) -> int:
    """Return the rank of a LoRA with about as many parameters as HRA."""
    layers = [m for name, m in model.named_modules() if name.endswith(tuple(targets)) and hasattr(m, "weight")]
    inputs, outputs = sum(m.weight[0].numel() for m in layers), sum(len(m.weight) for m in layers)
    return max(1, round(rank * inputs / (inputs + outputs)))


@contextmanager
def _with_weights(model: nn.Module, weights: Sequence[torch.Tensor]) -> Generator[None]:
    """Replace a model's weights within a `with` block."""
    trained_values = [parameter.data for parameter in model.parameters()]
    try:
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data = weight
        yield
    finally:
        for parameter, weight in zip(model.parameters(), trained_values, strict=True):
            parameter.data = weight


def radians(rate: float, rank: int) -> float:
    """Return the rotation of a layer of a rank in one step, given AdamW's change of an entry."""
    return rate * 4 * sqrt(rank)


def make_optimizer(components: Components, rate: float, rank: int) -> torch.optim.Optimizer:
    """Build the project's optimizer for reflections, AdamW without weight decay for other methods."""
    if all(isinstance(component, HRAModel) for component in components.values()):
        return build_optimizer(components, dict.fromkeys(components, radians(rate, rank)), OptimizerConfig())
    groups = [
        {"params": [p for p in component.parameters() if p.requires_grad], "component": name, "lr_per_radian": 1.0}
        for name, component in components.items()
    ]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)


def prepared_run(subject: str, options: argparse.Namespace, **settings: Any) -> Run:
    """Prepare the default run on a subject, with further settings, and generate its class images, once for all."""
    run = prepare_subject(subject, options, **settings)
    for _ in run.generate_class_images():
        pass
    return run


def prepare_subject(subject: str, options: argparse.Namespace, **settings: Any) -> Run:
    """Prepare the default run on a subject, with further settings."""
    folder = options.output_dir / subject
    values = {
        "instance_data_dir": SUBJECTS / subject,
        "output_dir": folder,
        "class_data_dir": folder / "class_images",
        "max_train_steps": options.steps,
        "rank": options.rank,
        "pretrained_model_name_or_path": options.model,
        "num_inference_steps": options.num_inference_steps,
        **({"num_class_images": 2, "num_inference_steps": 2} if options.smoke else {}),
        **settings,
    }
    (folder / "class_images").mkdir(parents=True, exist_ok=True)
    return prepare_run(DreamBooth(with_values(embedded_defaults(DreamBoothConfig, "embedded.toml"), values)))


@cache
def instruments() -> MetricModels:
    return load_metric_models(str(EMBEDDED_BASE))


def plan_for(run: Run, options: argparse.Namespace) -> EvaluationPlan:
    (subject,) = run.task.subjects
    return make_evaluation_plan(
        subject.prompt,
        subject.class_prompt,
        instruments().vocabulary,
        contexts=options.contexts,
        seeds=range(options.seeds),
        resolution=run.task.resolution,
        num_inference_steps=run.config.validation.num_inference_steps,
        guidance_scale=run.config.validation.guidance_scale,
        batch_size=8,
    )


class Base:
    """The base model's images of a subject's plan, generated once for all methods."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._images = cache(lambda subject: self._generate(subject, options))

    def images(self, subject: str) -> dict[str, list[Image.Image]]:
        return self._images(subject)

    def _generate(self, subject: str, options: argparse.Namespace) -> dict[str, list[Image.Image]]:
        run = prepared_run(subject, options)
        generations = Generations(plan=plan_for(run, options))
        with disable_hra(run.pipe):
            for _ in generations.generate_mode("base", run.pipe):
                pass
        return generations.images["base"]


def measure(subject: str, method: Method, rate: float, base: Base, options: argparse.Namespace) -> dict[str, float]:
    """Train a method on a subject, and measure its images."""
    run = prepared_run(subject, options)
    _, loss, duration = train_method(run, method, rate, options)
    return {"parameters": float(trained(loss)), **scores_of_run(run, subject, base, options), "seconds": duration}


def scores_of_run(run: Run, subject: str, base: Base, options: argparse.Namespace) -> dict[str, float]:
    """Generate a subject's images with the adapter of a run, and return their scores."""
    generations = Generations(plan=plan_for(run, options), images={"base": base.images(subject)})
    for _ in generations.generate_mode("adapter", run.pipe):
        pass
    return scores_of(generations, subject)


def train_method(
    run: Run, method: Method, rate: float, options: argparse.Namespace
) -> tuple[dict[str, nn.Module], nn.Module, float]:
    """Train a method instead of the run's adapter; return its components, its loss, and the time in seconds."""
    components, trainer = make_trainer(run, method, rate, options)
    duration = seconds(lambda: [None for _ in trainer.steps(options.steps)])
    for component in components.values():
        component.eval()
    return components, trainer.loss, duration


def make_trainer(
    run: Run, method: Method, rate: float, options: argparse.Namespace
) -> tuple[dict[str, nn.Module], Trainer]:
    """Replace the run's adapter by a method; return the adapted components and their trainer."""
    batch_at = run.start().trainer.batch_at
    targets = {name: component.peft_config["default"].target_modules for name, component in _hra(run).items()}
    components: dict[str, nn.Module] = {}
    for name, component in _hra(run).items():
        components[name] = method.adapt(component.unload().requires_grad_(False), targets[name])
        setattr(run.pipe, name, components[name])
    optimizer = make_optimizer(components, rate, options.rank)
    objective, process = ObjectiveConfig(orthogonality_weight=method.penalty), noise_process(run.pipe.scheduler)
    loss = DenoisingLoss(run.family.denoiser(True), process, objective, list(components.values()))
    accelerator: Accelerator = run.accelerator
    trainer = Trainer(
        accelerator=accelerator,
        loss=accelerator.prepare(loss),
        weights=trained_weights(loss),
        optimizer=accelerator.prepare(optimizer),
        lr_scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        batch_at=batch_at,
        max_grad_norm=run.config.optimizer.max_grad_norm,
    )
    return components, trainer


def held_out(subject: str) -> list[Image.Image]:
    """Return the real images of a subject that no method trains on."""
    return [Image.open(path).convert("RGB") for path in sorted((SUBJECTS / subject / "held_out").glob("*.png"))]


def scores_of(generations: Generations, subject: str) -> dict[str, float]:
    """Return the scores of a subject's images of both modes."""
    report = measure_subject(generations, held_out(subject), instruments())
    return {
        "gap closed": report.value("gap closed"),
        "backgrounds": report.value("background accuracy"),
        "backgrounds of the base": report.value("background accuracy", "base"),
        "class drift": report.value("drift, class"),
        "other drift": report.value("drift, unrelated"),
    }


def _hra(run: Run) -> dict[str, Any]:
    return adapted_components(run.pipe)


def cached(path: Path, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the result in a file; compute and write it if the file does not exist."""
    if not path.exists():
        result = json.dumps(compute())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write_text(result, encoding="utf-8"))
    return json.loads(path.read_text(encoding="utf-8"))


def balance(result: Mapping[str, float]) -> float:
    """Return the score of a rate: the best rate has the largest; −∞ for a run with NaN."""
    value = result["gap closed"] + result["backgrounds"] - result["class drift"]
    return value if np.isfinite(value) else -np.inf


def subject_parser(description: str | None, output_dir: str) -> argparse.ArgumentParser:
    """Return a parser with the options of a benchmark that trains and measures subjects."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="*", default=sorted(folder.name for folder in SUBJECTS.iterdir()))
    parser.add_argument("--model", default=str(EMBEDDED_BASE))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir))
    parser.add_argument("--smoke", action="store_true")
    return parser


def main() -> None:
    parser = subject_parser(__doc__, "outputs/methods")
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2])
    options = parser.parse_args()
    if options.smoke:
        options.subjects, options.rates, options.steps = ["tiger"], [1e-3], 1
        options.contexts = options.seeds = 1
    print(describe_machine())
    base, rows = Base(options), []
    for name, method in methods(options.rank).items():
        if options.methods and name not in options.methods:
            continue

        def result(subject: str, rate: float, name: str = name, method: Method = method) -> dict[str, float]:
            path = options.output_dir / subject / name / f"{rate:g}.json"
            return cached(path, lambda: measure(subject, method, rate, base, options))

        first, *others = options.subjects
        best = max(options.rates, key=lambda rate: balance(result(first, rate)))
        results = [result(subject, best) for subject in (first, *others)]
        means = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
        rows.append([name, f"{means.pop('parameters'):,.0f}", best, *means.values()])
    columns = [
        "",
        "parameters",
        "rate",
        "gap closed",
        "backgrounds",
        "… of the base",
        "class drift",
        "other drift",
        "s",
    ]
    print_table(f"{len(options.subjects)} subjects, {options.steps} steps, r = {options.rank}", columns, rows)


if __name__ == "__main__":
    main()
