"""Chroma (lodestones, 2025): FLUX.1-schnell without its distillation, pruned to 8.9 billion weights.

It takes no guidance scale and no pooled embedding: images need classifier-free guidance with a negative prompt. The
mask is 1 for a prompt's tokens, one token of padding and the image, and 0 for more padding. As in the pipeline, it is
added to the logits of attention, where padding counts e times less and is not left out.
"""

from torch import Tensor

from hra_diffusion.training.families.family import Conditioning
from hra_diffusion.training.families.flux_1 import Flux1


class Chroma(Flux1):
    """A transformer with the hidden states of T5 alone; an approximator computes its modulations from the timestep."""

    pipeline_class = "ChromaPipeline"
    title = "Chroma"

    @property
    def distillation(self) -> str | None:
        """See :class:`Family`."""
        return None

    def excluded_modules(self, name: str) -> str | None:
        """See :class:`Family`: as for FLUX.1, and the approximator, which every layer depends on."""
        return r"proj_out|distilled_guidance_layer\..*"

    def embed_prompts(self, prompts: list[str]) -> Conditioning:
        """See :class:`FrozenTextFamily`: embeddings (prompts, tokens, width) with a mask of numbers."""
        embeddings, _, mask, *_ = self.pipe.encode_prompt(
            prompts,
            device=self.pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.prompt_tokens,
        )
        return {"prompt": embeddings, "prompt_mask": mask}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`."""
        mask = self.pipe._prepare_attention_mask(
            batch_size=len(noisy),
            sequence_length=self.image_tokens(noisy.shape),
            dtype=noisy.dtype,
            attention_mask=conditioning["prompt_mask"].to(noisy.dtype),
        )
        return self._predict_packed(noisy, timesteps, conditioning, attention_mask=mask)
