"""Speed of a small training step: the frozen UNet, this project's adapter, and PEFT's LoRA."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hra_diffusion.adapter import HRAConfig
from hra_diffusion.adapter.targets import UNET_ATTENTION
from hra_diffusion.doctor.arithmetic import seeded_rows
from hra_diffusion.doctor.probes import Probes
from hra_diffusion.doctor.report import REPORT_ADVICE, Section
from hra_diffusion.model import HRAModel

FROZEN, OURS, LORA = "frozen", "hra_diffusion", "PEFT LoRA"
SLOWEST = 1.5
"""Times of LoRA's step above which a step of this project needs attention."""


def check_speed(probes: Probes, section: Section, seconds: float = 6.0) -> None:
    """Time a small training step of each contender in turn, for some seconds."""
    device = torch.device(probes.device())
    dtype = _fastest_dtype(device, probes)
    precision = str(dtype).removeprefix("torch.")
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    section.facts["step"] = f"forward and backward of a small UNet, {precision} on {where}, medians"
    steps = {name: _step(model, device, dtype) for name, model in _contenders(section, device).items()}
    times = _interleaved_times(steps, device, seconds)
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    for name, median in medians.items():
        section.facts[name] = f"{median * 1e3:.1f} ms ({median / medians[FROZEN]:.2f} × frozen)"
    if LORA in times and min(times[OURS]) > SLOWEST * min(times[LORA]):  # the fastest: other programs only add time
        section.warn(
            f"A step of hra_diffusion takes {min(times[OURS]) / min(times[LORA]):.1f} times that of PEFT's LoRA.",
            "End other programs and run the doctor again; see its section kernels. " + REPORT_ADVICE,
        )


def _fastest_dtype(device: torch.device, probes: Probes) -> torch.dtype:
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if {"AMX", "AVX512-BF16"} & set(probes.cpu().features) else torch.float32


def _contenders(section: Section, device: torch.device) -> dict[str, nn.Module]:
    """Return the same small UNet frozen, adapted, and with PEFT's LoRA if PEFT is installed."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        base: Any = UNet2DConditionModel(
            block_out_channels=(128, 256),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=256,
            attention_head_dim=4,
        ).requires_grad_(False)
        base.to(device)
        adapted = HRAModel(copy.deepcopy(base), HRAConfig(r=8, target_modules=UNET_ATTENTION))
        models: dict[str, nn.Module] = {FROZEN: base, OURS: adapted}
        try:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=8, target_modules=list(UNET_ATTENTION))
            models[LORA] = get_peft_model(copy.deepcopy(base), config)
        except ModuleNotFoundError as error:
            if error.name != "peft":
                raise
            section.facts[LORA] = "peft is not installed"
        except Exception as error:
            section.warn_of_error("PEFT fails", error, "Run: pip install --upgrade peft")
    return models


def _step(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Return a training step of a model in a precision, down to the gradient of its input."""
    sample = seeded_rows(1, 4, 16, 16).to(device).requires_grad_()
    timestep, context = torch.tensor([500], device=device), seeded_rows(1, 77, 256, seed=1).to(device)

    def run() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            output = model(sample, timestep, context).sample
        output.float().square().mean().backward()
        for weight in (sample, *model.parameters()):
            weight.grad = None

    return run


def _interleaved_times(
    steps: Mapping[str, Callable[[], None]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Return the times of each step in turn: a busy moment of the machine affects all. The first round warms up."""
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 2 or (time.perf_counter() < end and len(rounds) < 15):
        rounds.append({})
        for name, step in steps.items():
            _synchronize(device)
            began = time.perf_counter()
            step()
            _synchronize(device)
            rounds[-1][name] = time.perf_counter() - began
    return {name: [times[name] for times in rounds[1:]] for name in steps}


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
