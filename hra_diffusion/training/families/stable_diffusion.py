"""Stable Diffusion 1.x and 2.x (Rombach et al., arXiv 2112.10752), with any prediction type."""

from torch import Tensor

from hra_diffusion.pipelines.clip_skip import default_clip_skip
from hra_diffusion.training.families.clip_family import ClipFamily
from hra_diffusion.training.families.family import Conditioning


class StableDiffusion(ClipFamily):
    """A UNet that attends to the last layer of one CLIP text encoder."""

    pipeline_class = "StableDiffusionPipeline"

    @property
    def title(self) -> str:
        """See :class:`Family`: version 2 has a wider text encoder."""
        return f"Stable Diffusion {2 if self.pipe.unet.config.cross_attention_dim == 1024 else 1}"

    def excluded_modules(self, name: str) -> str | None:
        """See :class:`Family`: the layers that clip skip leaves out."""
        return self.last_layers(name, default_clip_skip(self.pipe) or 0) if name == "text_encoder" else None

    def encode_tokens(self, tokens: Conditioning) -> Conditioning:
        """See :class:`Family`: embeddings of shape (prompts, tokens, width)."""
        text_encoder = self.pipe.text_encoder
        ids = tokens["text_encoder"].to(text_encoder.device)
        clip_skip = default_clip_skip(self.pipe)
        if clip_skip is None:
            return {"prompt": text_encoder(ids)[0]}
        hidden = text_encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        clip = getattr(text_encoder, "text_model", text_encoder)  # transformers 5 has no text_model
        return {"prompt": clip.final_layer_norm(hidden)}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`."""
        prompt = conditioning["prompt"].to(noisy.dtype)
        return self.pipe.unet(noisy, timesteps, encoder_hidden_states=prompt).sample
