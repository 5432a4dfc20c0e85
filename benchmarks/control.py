"""Cost of a control, of diffusers' ControlNet and of PEFT's LoRA: `python benchmarks/control.py`.

    --pixels 256 --batch 1 --rank 8 --rounds 3      a step of Stable Diffusion 1.5's architecture, random weights
    --smoke                                          a test of the script at a tiny size

A *step* is a forward pass, a backward pass and a step of AdamW, as in the training scripts: the UNet in bfloat16, the
trained weights in float32 under autocast. All have the same condition encoder, which runs in each step.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from measure import describe_machine, interleaved, peak_gigabytes, print_table, process_peak, seconds, trained
from peft import LoraConfig
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.control import ConditionEncoder, adding
from hra_diffusion.training.config.control import CONTROL_TARGETS

OURS, LORA, CONTROLNET = "hra_diffusion", "PEFT LoRA", "diffusers ControlNet"
LIMITS = {"step": 0.5, "memory": 0.6}
"""Limits of this project, as a share of ControlNet's cost."""

SMOKE = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


class Contender(nn.Module):
    """A frozen UNet with trained modules."""

    def __init__(self, kind: str, rank: int, size: dict[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        torch.set_default_dtype(torch.bfloat16)
        self.unet: Any = UNet2DConditionModel(**{"cross_attention_dim": 768, **size}).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        if kind == OURS:
            self.unet = HRAModel(self.unet, HRAConfig(r=rank, target_modules=tuple(CONTROL_TARGETS)))
        if kind == LORA:
            self.unet.add_adapter(LoraConfig(r=rank, target_modules=list(CONTROL_TARGETS)))
        if kind == CONTROLNET:
            self.controlnet: nn.Module = ControlNetModel.from_unet(self.unet)
            self.encoder: nn.Module = self.controlnet.controlnet_cond_embedding
        else:
            self.encoder = ConditionEncoder(out_channels=self.unet.conv_in.out_channels)
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        for weight in weights:
            weight.data = weight.data.float()
        self.optimizer = torch.optim.AdamW(weights, lr=1e-5)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of trained parameters: in the encoder, and elsewhere."""
        encoder = trained(self.encoder)
        return encoder, trained(self) - encoder

    def forward(self, latents: torch.Tensor, prompt: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        time = torch.tensor([500], device=latents.device)
        if self.kind == CONTROLNET:
            down, middle = self.controlnet(
                latents, time, encoder_hidden_states=prompt, controlnet_cond=condition, return_dict=False
            )
            return self.unet(
                latents, time, prompt, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
        with adding(self.unet, self.encoder(condition)):
            return self.unet(latents, time, prompt).sample


def inputs(pixels: int, batch: int) -> tuple[torch.Tensor, ...]:
    """Return latents, prompt and condition of a batch."""
    side = pixels // 8
    tensors = torch.randn(batch, 4, side, side), torch.randn(batch, 77, 768), torch.rand(batch, 3, pixels, pixels)
    return tuple(tensor.bfloat16() for tensor in tensors)


def step(model: Contender, batch: tuple[torch.Tensor, ...]) -> None:
    """Take a training step."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*batch).float().square().mean()
    loss.backward()
    model.optimizer.step()
    model.optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("pixels", 256), ("batch", 1), ("rank", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--peak-of", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = SMOKE if options.smoke else {}
    pixels = 64 if options.smoke else options.pixels
    if options.peak_of:
        model, batch = Contender(options.peak_of, options.rank, size), inputs(pixels, options.batch)
        for _ in range(2):
            step(model, batch)
        print(process_peak())
        return
    print(describe_machine())
    arguments = [f"--{name}={getattr(options, name)}" for name in ("batch", "rank", "rounds")] + [f"--pixels={pixels}"]
    arguments += ["--smoke"] if options.smoke else []
    kinds = (OURS, LORA, CONTROLNET)
    peaks = {kind: peak_gigabytes([*arguments, "--peak-of", kind]) for kind in kinds}
    models = {kind: Contender(kind, options.rank, size) for kind in kinds}
    batch = inputs(pixels, options.batch)
    actions: dict[str, Callable[[], float]] = {
        kind: partial(seconds, partial(step, model, batch)) for kind, model in models.items()
    }
    times = interleaved(actions, options.rounds)
    rows = []
    for kind, model in models.items():
        encoder, elsewhere = model.counts()
        ratios = (times[kind] / times[CONTROLNET], peaks[kind] / peaks[CONTROLNET])
        rows.append([kind, f"{elsewhere:,}", f"{encoder:,}", times[kind], ratios[0], peaks[kind], ratios[1]])
    title = f"a step at {pixels} px, batch {options.batch}, r = {options.rank}"
    print_table(title, ["", "adapter", "encoder", "step s", "× ControlNet", "peak GB", "× ControlNet"], rows)
    print(f"\nLimits: {LIMITS['step']} of ControlNet's step, {LIMITS['memory']} of its memory.")


if __name__ == "__main__":
    main()
