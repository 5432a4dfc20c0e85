"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): flow matching with a transformer."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from hra_diffusion.training.families.clip_family import ClipFamily
from hra_diffusion.training.families.family import Conditioning, PromptPart
from hra_diffusion.training.families.stable_diffusion_xl import encode_with_clips

T5_TOKENS = 256
"""Tokens of a prompt for T5, as in the pipeline."""


class StableDiffusion3(ClipFamily):
    """A transformer with the embeddings of two CLIP text encoders and T5, one after the other.

    The CLIP encoders can be trained, T5 cannot. A model without T5 takes far less memory; zeros replace its embeddings.
    """

    pipeline_class = "StableDiffusion3Pipeline"
    title = "Stable Diffusion 3"
    denoiser_name = "transformer"
    text_encoder_names = ("text_encoder", "text_encoder_2")

    def prompt_parts(self, text_encoder_trains: bool) -> list[PromptPart]:
        """See :class:`Family`; T5's embeddings are computed ahead in either case."""
        t5, tokenizer = self.pipe.text_encoder_3, self.pipe.tokenizer_3
        part = PromptPart(
            encode=self._encode_with_t5,
            text_encoders=[] if t5 is None else [t5],
            tokenizers=[] if t5 is None else [tokenizer],
        )
        return [*super().prompt_parts(text_encoder_trains), part]

    def encode_tokens(self, tokens: Conditioning) -> Conditioning:
        """See :class:`Family`: embeddings (prompts, tokens, width) and both encoders' pooled embeddings."""
        prompt, pooled = encode_with_clips(self.pipe, tokens)
        return {"prompt": prompt, "pooled": torch.cat(pooled, -1)}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`."""
        t5 = conditioning["t5"].to(noisy.dtype)
        clips = conditioning["prompt"].to(noisy.dtype)
        return self.pipe.transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=torch.cat([pad(clips, (0, t5.shape[-1] - clips.shape[-1])), t5], 1),
            pooled_projections=conditioning["pooled"].to(noisy.dtype),
        ).sample

    @torch.no_grad()
    def _encode_with_t5(self, prompts: list[str]) -> Conditioning:
        t5, tokenizer = self.pipe.text_encoder_3, self.pipe.tokenizer_3
        if t5 is None:
            return {"t5": torch.zeros(len(prompts), T5_TOKENS, self.pipe.transformer.config.joint_attention_dim)}
        tokens = tokenizer(prompts, padding="max_length", max_length=T5_TOKENS, truncation=True, return_tensors="pt")
        return {"t5": t5(tokens.input_ids.to(t5.device))[0].cpu()}
