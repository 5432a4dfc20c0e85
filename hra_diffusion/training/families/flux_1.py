"""FLUX.1 (Black Forest Labs, 2024): flow matching with a transformer of two streams, then of one.

Latents are packed in patches of 2 × 2, each with the position (0, row, column). The models dev and Kontext are
distilled with guidance, whose scale is an input: it is 1 in training, and the pipeline's in generated images.
"""

from typing import Any

import torch
from torch import Tensor

from hra_diffusion.training.families.family import Conditioning
from hra_diffusion.training.families.frozen_text import FrozenTextFamily


class Flux1(FrozenTextFamily):
    """A transformer with the hidden states of T5, and CLIP's pooled embedding for the whole prompt."""

    pipeline_class = "FluxPipeline"
    title = "FLUX.1"
    default_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("proj_mlp", "proj_out"),
    )

    @property
    def distillation(self) -> str | None:
        """See :class:`Family`: schnell, whose transformer takes no guidance scale."""
        if self.pipe.transformer.config.guidance_embeds:
            return None
        return "its transformer takes no guidance scale, as FLUX.1-schnell; train black-forest-labs/FLUX.1-dev"

    def excluded_modules(self, name: str) -> str | None:
        """See :class:`Family`: the last layer, which has the name of a layer of the blocks with one stream."""
        return "proj_out"

    def embed_prompts(self, prompts: list[str]) -> Conditioning:
        """See :class:`FrozenTextFamily`: embeddings (prompts, tokens, width) and CLIP's; T5 reads padding, too."""
        embeddings, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.pipe.text_encoder.device, max_sequence_length=self.prompt_tokens
        )
        return {"prompt": embeddings, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`."""
        takes_guidance = self.pipe.transformer.config.guidance_embeds
        return self._predict_packed(
            noisy,
            timesteps,
            conditioning,
            pooled_projections=conditioning["pooled"].to(noisy.dtype),
            guidance=torch.ones(len(noisy), device=noisy.device) if takes_guidance else None,
        )

    def _predict_packed(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, **inputs: Tensor | None
    ) -> Tensor:
        """Call the transformer on packed latents, with more inputs of its own; returns (B, C, h, w)."""
        pipe: Any = self.pipe
        prompt = conditioning["prompt"].to(noisy.dtype)
        height, width = noisy.shape[2:]
        with noisy.device:
            ids = pipe._prepare_latent_image_ids(len(noisy), height // 2, width // 2, noisy.device, noisy.dtype)
            text_ids = torch.zeros(prompt.shape[1], 3, dtype=noisy.dtype)
        output = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, *noisy.shape),
            timestep=timesteps / pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=prompt,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
            **inputs,
        )[0]
        scale = pipe.vae_scale_factor
        return pipe._unpack_latents(output, height * scale, width * scale, scale)


class Flux1Kontext(Flux1):
    """FLUX.1 that can also take an image to edit: here it is trained for images from prompts alone."""

    pipeline_class = "FluxKontextPipeline"
    title = "FLUX.1 Kontext"
