"""Z-Image (Alibaba's Z-Image team, arXiv 2511.22699): flow matching with a transformer of one stream.

The transformer takes lists of latents and of prompt embeddings, the time 1 − σ, and returns latent − noise.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.training.families.family import Conditioning
from hra_diffusion.training.families.frozen_text import FrozenTextFamily, pad_prompts, prompt_lengths

_TURBO_SHIFT = 3.0
"""Shift of the schedule of Z-Image-Turbo; the base has 6."""


class ZImage(FrozenTextFamily):
    """A transformer with the hidden states of Qwen3 before its last layer, each prompt at its own length."""

    pipeline_class = "ZImagePipeline"
    title = "Z-Image"
    default_targets = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")

    @property
    def distillation(self) -> str | None:
        """See :class:`Family`: Turbo, by its name or its schedule; nothing else of its files differs from the base."""
        if "turbo" in Path(self.pipe.name_or_path).name.lower():
            return "its name has Turbo in it; train its base, Tongyi-MAI/Z-Image"
        if self.pipe.scheduler.config.shift == _TURBO_SHIFT:
            return f"its scheduler has Turbo's shift, {_TURBO_SHIFT:g}; train its base, Tongyi-MAI/Z-Image"
        return None

    def excluded_modules(self, name: str) -> str | None:
        """See :class:`Family`: the refiners of prompt and image before the layers that both share."""
        return r"(noise_refiner|context_refiner)\..*"

    def templated(self, prompt: str) -> str:
        """See :class:`FrozenTextFamily`."""
        chat: Any = [{"role": "user", "content": prompt}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return self.pipe.tokenizer.apply_chat_template(chat, **options)

    def embed_prompts(self, prompts: list[str]) -> Conditioning:
        """See :class:`FrozenTextFamily`: embeddings (prompts, tokens, width) with a mask."""
        device = self.pipe.text_encoder.device
        # The pipeline writes the template into the list.
        embeddings, _ = self.pipe.encode_prompt([*prompts], device=device, do_classifier_free_guidance=False)
        return pad_prompts(embeddings, self.prompt_tokens)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`."""
        lengths = prompt_lengths(conditioning["prompt_mask"])
        prompts = conditioning["prompt"].to(noisy.dtype)
        steps = self.pipe.scheduler.config.num_train_timesteps
        output = self.pipe.transformer(
            list(noisy.unsqueeze(2)),
            (steps - timesteps) / steps,
            [prompt[:length] for prompt, length in zip(prompts, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(output).squeeze(2)
