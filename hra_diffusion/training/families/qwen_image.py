"""Qwen-Image (Qwen team, arXiv 2508.02324): flow matching with a transformer of two streams, image and prompt.

The latents are those of an autoencoder of videos, a video of one frame, in patches of 2 × 2. Every prompt stands in one
chat template, whose first 34 tokens are dropped from the hidden states of Qwen2.5-VL.
"""

from pathlib import Path

from torch import Tensor

from hra_diffusion.training.families.family import Conditioning
from hra_diffusion.training.families.frozen_text import FrozenTextFamily, pad_prompts, prompt_lengths

_TOKENS = 512
"""Maximum number of a prompt's tokens behind the dropped ones, as in the pipeline's call."""


class QwenImage(FrozenTextFamily):
    """A transformer with the last hidden states of Qwen2.5-VL, each prompt at its own length, with a mask."""

    pipeline_class = "QwenImagePipeline"
    title = "Qwen-Image"
    default_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )
    normalizations = ("latents_mean and latents_std",)

    @property
    def prompt_tokens(self) -> int:
        """See :class:`FrozenTextFamily`: with the dropped tokens of the template."""
        return self.pipe.prompt_template_encode_start_idx + _TOKENS

    @property
    def distillation(self) -> str | None:
        """See :class:`Family`: a distilled model's files differ from the base's by their weights alone."""
        name = Path(self.pipe.name_or_path).name
        if marks := [mark for mark in ("Lightning", "Distill") if mark.lower() in name.lower()]:
            return f"its name has {marks[0]} in it; train its base, Qwen/Qwen-Image"
        return None

    def excluded_modules(self, name: str) -> str | None:
        """See :class:`Family`: the last layers of the prompt's stream, which nothing reads."""
        last = len(self.pipe.transformer.transformer_blocks) - 1
        return rf"transformer_blocks\.{last}\.(attn\.(add_q_proj|to_add_out)|txt_mlp\..*)"

    def templated(self, prompt: str) -> str:
        """See :class:`FrozenTextFamily`."""
        return self.pipe.prompt_template_encode.format(prompt)

    def embed_prompts(self, prompts: list[str]) -> Conditioning:
        """See :class:`FrozenTextFamily`: embeddings (prompts, tokens, width) with a mask."""
        device = self.pipe.text_encoder.device
        embeddings, mask = self.pipe.encode_prompt(prompts, device=device, max_sequence_length=_TOKENS)
        lengths = [embeddings.shape[1]] * len(prompts) if mask is None else mask.sum(1).tolist()
        return pad_prompts([row[:length] for row, length in zip(embeddings, lengths, strict=True)], _TOKENS)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`; the longest prompt of the batch decides on the number of tokens."""
        lengths = prompt_lengths(conditioning["prompt_mask"])
        longest = max(lengths)
        rows, channels, height, width = noisy.shape
        output = self.pipe.transformer(
            hidden_states=self.pipe._pack_latents(noisy, rows, channels, height, width),
            timestep=timesteps / self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt"][:, :longest].to(noisy.dtype),
            encoder_hidden_states_mask=None if min(lengths) == longest else conditioning["prompt_mask"][:, :longest],
            img_shapes=[[(1, height // 2, width // 2)]] * rows,
            return_dict=False,
        )[0]
        factor = self.pipe.vae_scale_factor
        return self.pipe._unpack_latents(output, height * factor, width * factor, factor).squeeze(2)
