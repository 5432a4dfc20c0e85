"""What differs between model families: how prompts are encoded, noise is added and the target is formed.

A family is one class here and one row of ``FAMILIES``. Stable Diffusion 1 and 2 (Rombach et al., arXiv 2112.10752)
noise by x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε and predict what the scheduler's config says:

    epsilon: ε        sample: x₀        v_prediction: v = √ᾱ_t ε − √(1−ᾱ_t) x₀    (Salimans and Ho, arXiv 2202.00512)
"""

from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from hra_diffusion.errors import ModelError
from hra_diffusion.pipelines import load_pipeline, pipeline_class
from hra_diffusion.training.config import ModelConfig


class Family(Protocol):
    """A loaded model of some family, as training sees it."""

    pipe: Any
    """The diffusers pipeline; its adapted components are replaced in place."""
    resolution: int
    """Side in pixels of the pictures the model was made for."""
    resolution_step: int
    """Sides must be multiples of this."""
    denoiser_name: str
    """Pipeline component that denoises."""

    def denoiser(self, text_encoder_trains: bool) -> nn.Module:
        """Return the module that maps (noisy latents, timesteps, condition) to the prediction."""
        ...

    def condition(self, prompts: list[str], text_encoder_trains: bool) -> Tensor:
        """Return what the denoiser takes for each prompt: token ids, or embeddings when the text encoder rests."""
        ...

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps to train at, of shape (count,)."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latents, shape as given."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser should predict, shape as given."""
        ...


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x, with any prediction type."""

    pipeline_class = "StableDiffusionPipeline"
    denoiser_name = "unet"
    # Never part of training; training previews are the user's own pictures.
    load_options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}  # noqa: RUF012

    def __init__(self, pipe: Any) -> None:
        """Take a loaded pipeline; raises ModelError when its prediction type is unknown."""
        self.pipe = pipe
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.resolution_step = pipe.vae_scale_factor
        self.resolution = pipe.unet.config.sample_size * pipe.vae_scale_factor
        self._targets = {
            "epsilon": lambda latents, noise, timesteps: noise,
            "sample": lambda latents, noise, timesteps: latents,
            "v_prediction": self.scheduler.get_velocity,
        }
        kind = self.scheduler.config.prediction_type
        if kind not in self._targets:
            raise ModelError(f"The model's scheduler predicts {kind!r}: use a model with {', '.join(self._targets)}.")
        self.target = self._targets[kind]

    def denoiser(self, text_encoder_trains: bool) -> nn.Module:
        """See :class:`Family`."""
        return _TextConditionedUNet(self.pipe.unet, self.pipe.text_encoder if text_encoder_trains else None)

    def condition(self, prompts: list[str], text_encoder_trains: bool) -> Tensor:
        """See :class:`Family`: ids of shape (prompts, tokens), or embeddings of shape (prompts, tokens, width)."""
        tokens = self.pipe.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.pipe.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        if text_encoder_trains:
            return tokens
        with torch.no_grad():
            return self.pipe.text_encoder(tokens.to(self.pipe.text_encoder.device))[0].cpu()

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw uniformly from the scheduler's timesteps."""
        return torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`Family`."""
        return self.scheduler.add_noise(latents, noise, timesteps)


class _TextConditionedUNet(nn.Module):
    """One module for everything that trains, so that devices synchronise it as one."""

    def __init__(self, unet: Any, text_encoder: nn.Module | None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.dtype: torch.dtype = unet.dtype  # the frozen model's: adapters stay in float32

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        if self.text_encoder is not None:
            prompts, of_example = condition.unique(dim=0, return_inverse=True)  # a batch repeats few prompts
            condition = self.text_encoder(prompts)[0][of_example]
        return self.unet(noisy.to(self.dtype), timesteps, encoder_hidden_states=condition.to(self.dtype)).sample


FAMILIES = {family.pipeline_class: family for family in (StableDiffusion,)}


def load(model: ModelConfig, dtype: torch.dtype = torch.float32) -> Family:
    """Load a model from a folder or the hub, safetensors only; the autoencoder in float32, the rest in ``dtype``.

    Raises:
        ModelError: the name is neither a model folder nor a model on the hub, or of a family that cannot be trained.
    """
    name = str(model.pretrained_model_name_or_path)
    kind = pipeline_class(name, model.revision)
    if kind not in FAMILIES:
        raise ModelError(f"{name!r} is a {kind}, which cannot be trained here: use a model of {', '.join(FAMILIES)}.")
    family = FAMILIES[kind]
    pipe = load_pipeline(name, revision=model.revision, variant=model.variant, **family.load_options)
    for component in (pipe.unet, pipe.text_encoder):
        if component.dtype != dtype:
            component.to(dtype)
    return family(pipe)
