"""Stable Diffusion XL (Podell et al., arXiv 2307.01952)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from hra_diffusion.training.families.family import Condition, Family


class StableDiffusionXL(Family):
    """A UNet that attends to two CLIP text encoders, and is told what became of an image before it was trained on.

    The latter (section 2.2 of the paper) are six numbers of pixels: height and width of the original, top and left of
    the crop in the scaled image, height and width of the crop. Small originals and cut subjects are thereby learned
    as such, and not drawn unless asked for.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    text_encoder_names = ("text_encoder", "text_encoder_2")
    load_options: ClassVar[dict[str, Any]] = {"add_watermarker": False}

    def unreached(self, name: str) -> str | None:
        """See :class:`Family`: the first text encoder's last layer, since its last but one is read, and not pooled."""
        if name != "text_encoder":
            return None
        return rf"(.*\.)?layers\.{self.pipe.text_encoder.config.num_hidden_layers - 1}\..*"

    def read(self, tokens: Condition) -> Condition:
        """See :class:`Family`: embeddings (prompts, tokens, width), and the second encoder's pooled ones."""
        prompt, pooled = read_two_clips(self.pipe, tokens)
        return {"prompt": prompt, "pooled": pooled[-1]}

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See :class:`Family`; the condition holds ``sizes`` (B, 6), too."""
        return self.pipe.unet(
            noisy,
            timesteps,
            encoder_hidden_states=condition["prompt"].to(noisy.dtype),
            added_cond_kwargs={
                "text_embeds": condition["pooled"].to(noisy.dtype),
                "time_ids": condition["sizes"],
            },
        ).sample


def read_two_clips(pipe: Any, tokens: Condition) -> tuple[Tensor, list[Tensor]]:
    """Last but one hidden states of two text encoders, side by side, and the pooled embedding of each."""
    hidden: list[Tensor] = []
    pooled: list[Tensor] = []
    for name in ("text_encoder", "text_encoder_2"):
        text_encoder = getattr(pipe, name)
        read = text_encoder(tokens[name].to(text_encoder.device), output_hidden_states=True)
        hidden.append(read.hidden_states[-2])
        pooled.append(read[0])
    return torch.cat(hidden, -1), pooled
