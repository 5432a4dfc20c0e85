"""Stable Diffusion XL (Podell et al., arXiv 2307.01952)."""

import torch
from torch import Tensor

from hra_diffusion.pipelines.clip_skip import default_clip_skip
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.families.clip_family import ClipFamily
from hra_diffusion.training.families.family import Conditioning


class StableDiffusionXL(ClipFamily):
    """A UNet with the embeddings of two CLIP text encoders and the sizes and crops of its training images.

    The sizes (section 2.2 of the paper) are six numbers of pixels: height and width of the original, top and left of
    the crop in the scaled image, height and width of the crop. The model learns small or cropped images as such, and
    generates them only on demand.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    title = "Stable Diffusion XL"
    text_encoder_names = ("text_encoder", "text_encoder_2")
    normalizations = ("scaling_factor", "latents_mean and latents_std")

    def excluded_modules(self, name: str) -> str | None:
        """See :class:`Family`: the first text encoder's last layer; the UNet uses the layer before, and no pooling."""
        return self.last_layers(name, 1 + (default_clip_skip(self.pipe) or 0)) if name == "text_encoder" else None

    def encode_tokens(self, tokens: Conditioning) -> Conditioning:
        """See :class:`Family`: embeddings (prompts, tokens, width), and the second encoder's pooled embeddings."""
        prompt, pooled = encode_with_clips(self.pipe, tokens)
        return {"prompt": prompt, "pooled": pooled[-1]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`; the conditioning also holds ``sizes`` (B, 6)."""
        return self.pipe.unet(
            noisy,
            timesteps,
            encoder_hidden_states=conditioning["prompt"].to(noisy.dtype),
            added_cond_kwargs={
                "text_embeds": conditioning["pooled"].to(noisy.dtype),
                "time_ids": conditioning["sizes"],
            },
        ).sample


def encode_with_clips(pipe: Pipeline, tokens: Conditioning) -> tuple[Tensor, list[Tensor]]:
    """Return two text encoders' second-to-last hidden states, side by side, and both pooled embeddings.

    With clip skip, earlier hidden states instead of the second-to-last.
    """
    layer = -2 - (default_clip_skip(pipe) or 0)
    hidden: list[Tensor] = []
    pooled: list[Tensor] = []
    for name in ("text_encoder", "text_encoder_2"):
        text_encoder = getattr(pipe, name)
        output = text_encoder(tokens[name].to(text_encoder.device), output_hidden_states=True)
        hidden.append(output.hidden_states[layer])
        pooled.append(output[0])
    return torch.cat(hidden, -1), pooled
