"""Following edges by HRA, LoRA and ControlNet, as well as each learns it: `python benchmarks/control_methods.py`.

    --steps 300                            of training; the default run has 2000
    --num_pairs 200                        held-out pairs to measure on
    --lora_rate 2e-3 --controlnet_rate 5e-4
    --methods HRA LoRA                     some rows only
    --output_dir outputs/control_methods
    --smoke                                everything at a size that means nothing, to see that it runs

Same base, pairs, batches, noises, condition encoder, steps and seeds for all; rates are AdamW's, on one schedule.
LoRA is in HRA's layers, with the rank at which it has about as many parameters; ControlNet is diffusers', which has an
encoder of the same kind in it. Each run leaves a file when it is done, so a second call goes on.
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
from methods import equal_rank, kept
from peft import LoraConfig
from PIL import Image
from torch import nn

from hra_diffusion.control import Control, adding, to_conditions
from hra_diffusion.evaluation.control_trial import trial_of
from hra_diffusion.metrics.instruments import load_instruments
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.defaults import EMBEDDED_BASE, embedded_defaults
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.controlnet import HELD_OUT, ControlNet
from hra_diffusion.training.families import Condition
from hra_diffusion.training.loop.trainer import Trainer, trained_weights
from hra_diffusion.training.objective.controlled_denoiser import CONDITIONS, KEPT, ControlledDenoiser
from hra_diffusion.training.objective.losses import DenoisingLoss
from hra_diffusion.training.objective.noising import noise_process

ROWS = ("canny F1, within 0 px", "canny F1, within 1 px", "object and background, mIoU")


class Hra:
    """The project's own run, as it is."""

    def __init__(self, run: ControlNet, options: argparse.Namespace) -> None:
        self.run, self.pipe, self.trainer = run, run.pipe, run.recording.trainer
        self.parameters = (trained(run.pipe.unet), trained(run.encoder))

    @property
    def control(self) -> Control:
        self.pipe.unet.set_adapters([])  # it rests but for conditions
        return self.run.control


class Lora:
    """PEFT's LoRA in the same layers, beside the same encoder."""

    def __init__(self, run: ControlNet, options: argparse.Namespace) -> None:
        self.pipe, self.encoder, batch_at = run.pipe, run.encoder, run.recording.trainer.batch_at
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
        """Have a condition guide what is drawn, as the project's own does: guidance strengthens it."""
        with torch.no_grad():
            features = self.encoder(to_conditions(conditions))
        pipe.unet.enable_adapters()
        with adding(pipe.unet, torch.cat([torch.zeros_like(features), features])):
            yield
        pipe.unet.disable_adapters()


class Controlnet(nn.Module):
    """diffusers' ControlNet, drawn with in diffusers' pipeline."""

    def __init__(self, run: ControlNet, options: argparse.Namespace) -> None:
        super().__init__()
        self.base, batch_at = run.pipe, run.recording.trainer.batch_at
        self.base.unet = self.base.unet.unload().requires_grad_(False)
        torch.manual_seed(0)
        self.beside = ControlNetModel.from_unet(self.base.unet)
        encoder = trained(self.beside.controlnet_cond_embedding)
        self.parameters = (trained(self.beside) - encoder, encoder)
        self.family, self.conditions = run.family, None
        self.drawing = StableDiffusionControlNetPipeline(
            **self.base.components, controlnet=self.beside, requires_safety_checker=False
        )
        self.trainer = _trainer(run, self, {options.controlnet_rate: self.beside}, batch_at)
        self.pipe = self.draw

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        prompt, given = condition["prompt"], condition[CONDITIONS] / 255
        told = {"encoder_hidden_states": prompt, "controlnet_cond": given, "return_dict": False}
        down, middle = self.beside(noisy, timesteps, **told)
        kept = condition[KEPT].view(-1, 1, 1, 1)
        return self.base.unet(
            noisy,
            timesteps,
            prompt,
            down_block_additional_residuals=[each * kept for each in down],
            mid_block_additional_residual=middle * kept,
        ).sample

    def draw(self, prompts: list[str], **options: Any) -> Any:
        if self.conditions is None:
            return self.base(prompts, **options)
        return self.drawing(prompts, image=self.conditions, **options)

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
    run: ControlNet, denoiser: nn.Module, rates: Mapping[float, nn.Module], batch_at: Callable[[int], Any]
) -> Trainer:
    """The trainer of the run, for something else that trains, at AdamW's rates."""
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
        run.config.optimizer.lr_scheduler, optimizer, num_warmup_steps=0, num_training_steps=run.total_steps
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
    """Teach the base to follow edges by a method, and measure whether it does."""
    values = {"max_train_steps": options.steps, "output_dir": options.output_dir / "runs" / name}
    values |= {"max_train_samples": 8, "num_inference_steps": 2} if options.smoke else {}
    run = ControlNet(with_values(embedded_defaults(ControlNetConfig, "embedded_control.toml"), values))
    learner = METHODS[name](run, options)
    taken = seconds(lambda: [None for _ in learner.trainer.steps(options.steps)])
    learner.trainer.loss.eval()
    folder = run.config.pairs.train_data_dir / HELD_OUT
    trial = trial_of(folder, run.annotator, run.config, run.resolution, num_pairs=options.num_pairs, batch_size=8)
    for _ in trial.draw(learner.pipe, learner.control):
        pass
    rows = trial.measure(run.annotator, load_instruments(str(EMBEDDED_BASE)))
    (accuracy,) = [row for row in rows if row.startswith("object accuracy")]
    adapter, encoder = learner.parameters
    return {
        "adapter": float(adapter),
        "encoder": float(encoder),
        **{f"{row} {mode}": rows[row][mode].value for row in ROWS for mode in ("controlled", "shuffled", "base")},
        **{f"accuracy {mode}": rows[accuracy][mode].value for mode in ("controlled", "base")},
        "seconds": taken,
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
        name: kept(options.output_dir / f"{name}.json", partial(measure, name, options)) for name in options.methods
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
