"""FLUX.2 (Black Forest Labs, 2025): flow matching with a transformer of two streams, then of one.

Its latents are patches of 2 × 2, normalized by a batch norm's statistics; each has the position (0, row, column, 0).
The model dev is distilled with guidance, as FLUX.1 dev: the scale is 1 in training, and the pipeline's in generated
images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.training.families.family import Conditioning
from hra_diffusion.training.families.frozen_text import FrozenTextFamily

_STEPS = 50
"""Denoising steps for which training takes the schedule's shift: the pipeline's default."""


class Flux2(FrozenTextFamily):
    """A transformer with three hidden states of a language model side by side, from prompts of one length."""

    default_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("to_qkv_mlp_proj", "attn.to_out"),
    )
    normalizations = ("a batch norm",)

    def excluded_modules(self, name: str) -> str | None:
        """See :class:`Family`: lists of layers with the name of a layer, ``attn.to_out``, in the other blocks."""
        return r"transformer_blocks\.\d+\.attn\.to_out"

    def image_tokens(self, size: Sequence[int]) -> int:
        """See :class:`Family`: the latents are patches."""
        return size[-2] * size[-1]

    def mu(self, tokens: int) -> float:
        """See :class:`Family`."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu  # not for other families

        return compute_empirical_mu(tokens, _STEPS)

    def embed_prompts(self, prompts: list[str]) -> Conditioning:
        """See :class:`FrozenTextFamily`: embeddings (prompts, tokens, width); the transformer reads padding, too."""
        embeddings, _ = self.pipe.encode_prompt(prompts, device=self.pipe.text_encoder.device)
        return {"prompt": embeddings}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`."""
        prompt = conditioning["prompt"].to(noisy.dtype)
        with noisy.device:
            positions, text_positions = self.pipe._prepare_latent_ids(noisy), self.pipe._prepare_text_ids(prompt)
            guidance = torch.ones(len(noisy)) if self.pipe.transformer.config.guidance_embeds else None
        output = self.pipe.transformer(
            hidden_states=self.pipe._pack_latents(noisy),
            timestep=timesteps / self.pipe.scheduler.config.num_train_timesteps,
            guidance=guidance,
            encoder_hidden_states=prompt,
            txt_ids=text_positions,
            img_ids=positions,
            return_dict=False,
        )[0]
        return output.mT.unflatten(2, noisy.shape[2:])


class Flux2Klein(Flux2):
    """FLUX.2 with Qwen3, which takes no guidance scale: images need classifier-free guidance."""

    pipeline_class = "Flux2KleinPipeline"
    title = "FLUX.2 klein"

    @property
    def distillation(self) -> str | None:
        """See :class:`Family`."""
        if self.pipe.config["is_distilled"]:
            return "is_distilled in its model_index.json; train its base, FLUX.2-klein-base-4B or FLUX.2-klein-base-9B"
        return None

    def templated(self, prompt: str) -> str:
        """See :class:`FrozenTextFamily`."""
        chat: Any = [{"role": "user", "content": prompt}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return self.pipe.tokenizer.apply_chat_template(chat, **options)


class Flux2Dev(Flux2):
    """FLUX.2 with Mistral 3, which reads a system message before each prompt."""

    pipeline_class = "Flux2Pipeline"
    title = "FLUX.2 dev"
    ignored_text = "[IMG]"

    def templated(self, prompt: str) -> str:
        """See :class:`FrozenTextFamily`."""
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        (chat,) = format_input([prompt], self.pipe.system_message)
        return self.pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
