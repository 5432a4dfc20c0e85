"""Control by edges with HRA, LoRA and ControlNet: `python benchmarks/control_methods.py`.

    --steps 300                            training steps; the default run has 2000
    --num_pairs 200                        held-out pairs for the metrics
    --lora_rate 2e-3 --controlnet_rate 5e-4
    --methods HRA LoRA                     some rows only
    --output_dir outputs/control_methods
    --smoke                                a test of the script at a tiny size, without meaningful numbers

All methods share the base, pairs, batches, noise, condition encoder, steps and seeds; learning rates are AdamW's, on
one schedule. LoRA adapts HRA's layers, with the rank of about equal parameters; ControlNet is diffusers', with an
encoder of the same kind. Each finished run leaves a file, so a second call resumes.
"""

import argparse
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.optimization import get_scheduler
from measure import describe_machine, print_table, seconds, trained
from methods import cached, equal_rank
from peft import LoraConfig
from PIL import Image
from torch import nn

from hra_diffusion.control import Control, adding, to_conditions
from hra_diffusion.evaluation import read_trial
from hra_diffusion.metrics import load_metric_models
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.defaults import EMBEDDED_BASE, embedded_defaults
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.controlnet import HELD_OUT, ControlNet
from hra_diffusion.training.families import Conditioning
from hra_diffusion.training.families.controlled_denoiser import CONDITION, CONDITION_KEPT, ControlledDenoiser
from hra_diffusion.training.loop.trainer import Trainer, trained_weights
from hra_diffusion.training.objective.losses import DenoisingLoss
from hra_diffusion.training.objective.noising import noise_process
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run

ROWS = ("canny F1, within 0 px", "canny F1, within 1 px", "object and background, mIoU")


class Hra:
    """HRA: the run of this project."""

    def __init__(self, run: Run, options: argparse.Namespace) -> None:
        self.run, self.pipe, self.trainer = run, run.pipe, run.start().trainer
        self.parameters = (trained(run.pipe.unet), trained(run.task.encoder))

    @property
    def control(self) -> Control:
        self.pipe.unet.set_adapters([])  # inactive without a condition
        return self.run.task.control


class Lora:
    """LoRA of PEFT in the same layers, with the same encoder."""

    def __init__(self, run: Run, options: argparse.Namespace) -> None:
        self.pipe, self.encoder, batch_at = run.pipe, run.task.encoder, run.start().trainer.batch_at
        targets = self.pipe.unet.peft_config["default"].target_modules
        self.pipe.unet = self.pipe.unet.unload().requires_grad_(False)
        rank = equal_rank(self.pipe.unet, targets, run.config.adapter.rank)
        torch.manual_seed(0)
        self.pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
        self.parameters = (trained(self.pipe.unet), trained(self.encoder))
        denoiser = ControlledDenoiser(run.family.denoiser(False), self.pipe, self.encoder)
        rates = {options.lora_rate: self.pipe.unet, run.config.control.encoder_lr: self.encoder}
        self.trainer = _trainer(run, denoiser, rates, batch_at)

    @property
    def control(self) -> "Lora":
        self.pipe.unet.disable_adapters()
        return self

    @contextmanager
    def guiding(self, pipe: Any, conditions: Sequence[Image.Image], *, annotated: bool) -> Generator[None]:
        """Guide the pipeline like `Control.guiding`: classifier-free guidance strengthens the condition."""
        with torch.no_grad():
            features = self.encoder(to_conditions(conditions))
        pipe.unet.enable_adapters()
        with adding(pipe.unet, torch.cat([torch.zeros_like(features), features])):
            yield
        pipe.unet.disable_adapters()


class Controlnet(nn.Module):
    """ControlNet of diffusers, in its pipeline."""

    def __init__(self, run: Run, options: argparse.Namespace) -> None:
        super().__init__()
        self.base, batch_at = run.pipe, run.start().trainer.batch_at
        self.base.unet = self.base.unet.unload().requires_grad_(False)
        torch.manual_seed(0)
        self.controlnet = ControlNetModel.from_unet(self.base.unet)
        encoder = trained(self.controlnet.controlnet_cond_embedding)
        self.parameters = (trained(self.controlnet) - encoder, encoder)
        self.family, self.conditions = run.family, None
        self.controlnet_pipe = StableDiffusionControlNetPipeline(
            **self.base.components, controlnet=self.controlnet, requires_safety_checker=False
        )
        self.trainer = _trainer(run, self, {options.controlnet_rate: self.controlnet}, batch_at)
        self.pipe = self.generate

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: Conditioning) -> torch.Tensor:
        prompt, image = condition["prompt"], condition[CONDITION] / 255
        inputs = {"encoder_hidden_states": prompt, "controlnet_cond": image, "return_dict": False}
        down, middle = self.controlnet(noisy, timesteps, **inputs)
        kept = condition[CONDITION_KEPT].view(-1, 1, 1, 1)
        return self.base.unet(
            noisy,
            timesteps,
            prompt,
            down_block_additional_residuals=[residual * kept for residual in down],
            mid_block_additional_residual=middle * kept,
        ).sample

    def generate(self, prompt: list[str], **options: Any) -> Any:
        if self.conditions is None:
            return self.base(prompt, **options)
        return self.controlnet_pipe(prompt, image=self.conditions, **options)

    @property
    def control(self) -> "Controlnet":
        return self

    @contextmanager
    def guiding(self, pipe: Any, conditions: Sequence[Image.Image], *, annotated: bool) -> Generator[None]:
        self.conditions = list(conditions)
        yield
        self.conditions = None


METHODS: Mapping[str, Callable[..., Any]] = {"HRA": Hra, "LoRA": Lora, "ControlNet": Controlnet}


def _trainer(
    run: Run, denoiser: nn.Module, rates: Mapping[float, nn.Module], batch_at: Callable[[int], Any]
) -> Trainer:
    """Return a trainer like the run's, for another denoiser with AdamW's learning rates."""
    groups = [
        {
            "params": [p for p in part.parameters() if p.requires_grad],
            "lr": lr,
            "component": str(lr),
            "lr_per_radian": 1.0,
        }
        for lr, part in rates.items()
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    loss = DenoisingLoss(denoiser, noise_process(run.pipe.scheduler), run.config.objective)
    schedule = get_scheduler(
        run.config.optimizer.lr_scheduler, optimizer, num_warmup_steps=0, num_training_steps=run.plan.total_steps
    )
    return Trainer(
        accelerator=run.accelerator,
        loss=run.accelerator.prepare(loss),
        weights=trained_weights(loss),
        optimizer=run.accelerator.prepare(optimizer),
        lr_scheduler=schedule,
        batch_at=batch_at,
        max_grad_norm=run.config.optimizer.max_grad_norm,
    )


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Train the base for control by edges with a method, and measure the agreement."""
    values = {"max_train_steps": options.steps, "output_dir": options.output_dir / "runs" / name}
    values |= {"max_train_samples": 8, "num_inference_steps": 2} if options.smoke else {}
    run = prepare_run(ControlNet(with_values(embedded_defaults(ControlNetConfig, "embedded_control.toml"), values)))
    method = METHODS[name](run, options)
    duration = seconds(lambda: [None for _ in method.trainer.steps(options.steps)])
    method.trainer.loss.eval()
    folder = run.config.pairs.train_data_dir / HELD_OUT
    task, pairs = run.task, options.num_pairs
    trial = read_trial(folder, task.annotator, run.config, task.resolution, num_pairs=pairs, batch_size=8)
    for _ in trial.generate(method.pipe, method.control):
        pass
    rows = trial.measure(task.annotator, load_metric_models(str(EMBEDDED_BASE)))
    (accuracy,) = [row for row in rows if row.startswith("object accuracy")]
    adapter, encoder = method.parameters
    return {
        "adapter": float(adapter),
        "encoder": float(encoder),
        **{f"{row} {mode}": rows[row][mode].value for row in ROWS for mode in ("controlled", "shuffled", "base")},
        **{f"accuracy {mode}": rows[accuracy][mode].value for mode in ("controlled", "base")},
        "seconds": duration,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--num_pairs", type=int, default=200)
    parser.add_argument("--lora_rate", type=float, default=2e-3)
    parser.add_argument("--controlnet_rate", type=float, default=5e-4)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/control_methods"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.steps, options.num_pairs = 1, 2
    print(describe_machine())
    results = {
        name: cached(options.output_dir / f"{name}.json", partial(measure, name, options)) for name in options.methods
    }
    lines = [
        [name, *(f"{result.pop(part):,.0f}" for part in ("adapter", "encoder")), *result.values()]
        for name, result in results.items()
    ]
    columns = ["", "adapter", "encoder"]
    columns += [f"{row}{mode}" for row in ("F1", "F1 ± 1 px", "mIoU") for mode in ("", ", shuffled", ", without")]
    columns += ["objects", "… without", "s"]
    print_table(f"{options.steps} steps, {options.num_pairs} pairs", columns, lines)


if __name__ == "__main__":
    main()
