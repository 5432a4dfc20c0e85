"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): flow matching with a transformer."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from hra_diffusion.training.families.family import Condition, Family
from hra_diffusion.training.families.stable_diffusion_xl import read_two_clips

T5_TOKENS = 256
"""Length of what T5 reads, as in the pipeline."""


class StableDiffusion3(Family):
    """A transformer that attends to two CLIP text encoders and T5, one after the other.

    The CLIPs can be trained. T5 cannot; it may be missing, which saves most of the memory: zeros stand for it then.
    """

    pipeline_class = "StableDiffusion3Pipeline"
    denoiser_name = "transformer"
    text_encoder_names = ("text_encoder", "text_encoder_2")

    def condition(self, prompts: list[str], text_encoder_trains: bool) -> Condition:
        """See :class:`Family`; what T5 says is known ahead in either case."""
        return super().condition(prompts, text_encoder_trains) | {"t5": self._read_by_t5(prompts)}

    def read(self, tokens: Condition) -> Condition:
        """See :class:`Family`: embeddings (prompts, tokens, width) and the pooled ones of both CLIPs."""
        prompt, pooled = read_two_clips(self.pipe, tokens)
        return {"prompt": prompt, "pooled": torch.cat(pooled, -1)}

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See :class:`Family`."""
        t5 = condition["t5"].to(noisy.dtype)
        clips = condition["prompt"].to(noisy.dtype)
        return self.pipe.transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=torch.cat([pad(clips, (0, t5.shape[-1] - clips.shape[-1])), t5], 1),
            pooled_projections=condition["pooled"].to(noisy.dtype),
        ).sample

    @torch.no_grad()
    def _read_by_t5(self, prompts: list[str]) -> Tensor:
        t5, tokenizer = self.pipe.text_encoder_3, self.pipe.tokenizer_3
        if t5 is None:
            return torch.zeros(len(prompts), T5_TOKENS, self.pipe.transformer.config.joint_attention_dim)
        tokens = tokenizer(prompts, padding="max_length", max_length=T5_TOKENS, truncation=True, return_tensors="pt")
        return t5(tokens.input_ids.to(t5.device))[0].cpu()
