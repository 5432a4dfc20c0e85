"""Stable Diffusion 1.x and 2.x (Rombach et al., arXiv 2112.10752), with any prediction type."""

from typing import Any, ClassVar

from torch import Tensor

from hra_diffusion.training.families.family import Conditioning, Family


class StableDiffusion(Family):
    """A UNet that attends to the last layer of one CLIP text encoder."""

    pipeline_class = "StableDiffusionPipeline"
    # Not needed for training; validation images need no safety checker.
    load_options: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }

    def encode_tokens(self, tokens: Conditioning) -> Conditioning:
        """See :class:`Family`: embeddings of shape (prompts, tokens, width)."""
        text_encoder = self.pipe.text_encoder
        return {"prompt": text_encoder(tokens["text_encoder"].to(text_encoder.device))[0]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Family`."""
        prompt = conditioning["prompt"].to(noisy.dtype)
        return self.pipe.unet(noisy, timesteps, encoder_hidden_states=prompt).sample
