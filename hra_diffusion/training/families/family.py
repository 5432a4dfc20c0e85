"""A model family: what training has to know of a kind of models.

A family is one class in one file of this folder, and a row of ``FAMILIES`` and of `hra_diffusion.pipelines.kinds.KINDS`
for its diffusers pipeline. To add one, derive from :class:`FrozenTextFamily` if its text encoders only read prompts,
and from :class:`ClipFamily` if they can be trained, and say:

1. the names: ``pipeline_class``, ``title``, ``denoiser_name``, the ``default_targets`` of an adapter;
2. how a prompt becomes conditions: ``embed_prompts`` calls the pipeline's own ``encode_prompt``;
3. how the denoiser is called: ``predict`` packs latents by the pipeline's own functions. It returns the noise process's
   target (for flow matching noise − latent) at timesteps from 0 to 1000;
4. where they differ from the defaults: ``mu`` and ``image_tokens`` (the shift of dynamic schedules), ``distillation``
   (models that are refused), ``excluded_modules``, ``normalizations`` (the autoencoders that fit).

Sizes and guidance are the pipeline's: see `hra_diffusion.pipelines.kinds`; latents are the autoencoder's: see
:class:`LatentSpace`. ``tests/training/test_families.py`` compares each of them with the pipeline itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.kinds import kind_of
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.adapter import ATTENTION_TARGETS
from hra_diffusion.training.families.latent_space import LatentSpace, Normalization
from hra_diffusion.training.objective.noising import NoiseProcess, noise_process

Conditioning = dict[str, Tensor]
"""Inputs of the denoiser besides latents and timesteps, by name; the first dimension counts prompts or examples."""


@dataclass(frozen=True, kw_only=True)
class PromptPart:
    """A part of the encoding of prompts, whose text encoders are on the device together."""

    encode: Callable[[list[str]], Conditioning]
    """Encodes prompts; the result is on the CPU."""
    text_encoders: Sequence[nn.Module] = ()
    """None of them while prompts are only tokenized."""
    tokenizers: Sequence[Any] = ()
    template: tuple[object, ...] = ()
    """Everything else that the result depends on, such as the chat template, by its ``repr``."""


class Family(ABC):
    """A loaded model of some family, ready to train.

    Attributes:
        pipe: the diffusers pipeline; its adapted components are replaced in place.
        latent_space: the latents of its autoencoder.
    """

    pipeline_class: ClassVar[str]
    title: Any
    """The name of the family in messages, a text."""
    denoiser_name: ClassVar[str] = "transformer"
    """The pipeline component that denoises."""
    text_encoder_names: ClassVar[tuple[str, ...]] = ()
    """The trainable text encoders of the pipeline; each has a tokenizer of the same number."""
    default_targets: ClassVar[tuple[str, ...]] = ATTENTION_TARGETS
    """The default target modules of the denoiser."""
    normalizations: ClassVar[tuple[Normalization, ...]] = ("scaling_factor",)
    """The normalizations of latents that the pipeline undoes when it decodes."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe
        self.latent_space = LatentSpace(pipe.vae)

    @property
    def model(self) -> Any:
        """The pipeline's denoiser: the frozen model, or the adapted one once adapters are added."""
        return getattr(self.pipe, self.denoiser_name)

    @property
    def pixels_per_latent(self) -> int:
        """Side of a latent pixel of the denoiser, in pixels of the image."""
        return self.pipe.vae_scale_factor * self.latent_space.patch

    @property
    def distillation(self) -> str | None:
        """What marks the model as distilled, and the model to train instead, in a text; None for a base model."""
        return None

    def default_settings(self, config: TrainingConfig) -> dict[str, Any]:
        """Return the settings that a run leaves to the family, by name.

        Raises:
            ConfigError: the run trains text encoders, and the family's only encode prompts.
        """
        if config.adapter.text_encoder_trains and not self.text_encoder_names:
            raise ConfigError(
                f"The text encoder of {self.title} only encodes prompts and does not train: leave out "
                "--train_text_encoder and --train_text_encoder_ti."
            )
        values: dict[str, Any] = {}
        if config.adapter.target_modules is None:
            values["target_modules"] = self.default_targets
        if config.validation.guidance_scale is None:
            values["guidance_scale"] = kind_of(self.pipe).guidance_scale
        return values

    def excluded_modules(self, name: str) -> str | None:
        """Return a regular expression of a component's modules that are never adapted, or None.

        Modules without effect on predictions are among them: they would learn nothing, and distributed training would
        wait for their gradients.
        """
        return None

    def noise_process(self, flow_shift: float | None = None) -> NoiseProcess:
        """Return the noise process of the scheduler; its dynamic shift follows the size of the latents.

        Args:
            flow_shift: the shift to train with, instead of the scheduler's.
        """
        return noise_process(self.pipe.scheduler, flow_shift, lambda size: self.mu(self.image_tokens(size)))

    def image_tokens(self, size: Sequence[int]) -> int:
        """Return the number of the denoiser's tokens for latents of shape (C, h, w): patches of 2 × 2 by default."""
        return size[-2] // 2 * (size[-1] // 2)

    def mu(self, tokens: int) -> float:
        """Return the μ of a dynamic shift for a number of image tokens: linear between two lengths by default."""
        config = self.pipe.scheduler.config
        shortest, longest = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (most - least) / (longest - shortest)
        return tokens * slope + least - slope * shortest

    @abstractmethod
    def prompt_parts(self, text_encoder_trains: bool) -> list[PromptPart]:
        """Return the parts of the encoding of prompts ahead of training.

        Prompts become token ids while the text encoders train, and embeddings otherwise.
        """

    def encode_prompts(self, prompts: list[str], text_encoder_trains: bool) -> Conditioning:
        """Encode prompts by all parts, each text encoder on its present device."""
        conditioning: Conditioning = {}
        for part in self.prompt_parts(text_encoder_trains):
            conditioning |= part.encode(prompts)
        return conditioning

    def encode_tokens(self, tokens: Conditioning) -> Conditioning:
        """Embed token ids (prompts, tokens), named by text encoder, with the trainable text encoders as they are."""
        raise NotImplementedError(f"The text encoders of {self.title} do not train.")

    @abstractmethod
    def truncated_text(self, prompt: str) -> str:
        """Return the end of a prompt beyond the text encoders' maximum length; often ""."""

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Call the denoiser on latents (B, C, h, w) in its precision; timesteps (B,); returns (B, C, h, w)."""

    def denoiser(self, text_encoder_trains: bool) -> "Denoiser":
        """Return the module that maps (noisy latents, timesteps, conditioning) to the prediction."""
        return Denoiser(self, text_encoder_trains)


class Denoiser(nn.Module):
    """A family's denoiser and its trained text encoders as one module, synchronized as one between devices."""

    def __init__(self, family: Family, text_encoder_trains: bool) -> None:
        super().__init__()
        names = (family.denoiser_name, *(family.text_encoder_names if text_encoder_trains else ()))
        self.parts = nn.ModuleDict({name: getattr(family.pipe, name) for name in names})
        self.family = family
        self.text_encoder_trains = text_encoder_trains
        # The frozen model's dtype: adapters stay in float32.
        self.dtype: torch.dtype = family.model.dtype

    def forward(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict for latents (B, C, h, w), timesteps (B,) and each example's prompt, as tokens or embeddings."""
        if self.text_encoder_trains:
            conditioning = conditioning | self._encode_tokens(conditioning)
        return self.family.predict(noisy.to(self.dtype), timesteps, conditioning)

    def _encode_tokens(self, conditioning: Conditioning) -> Conditioning:
        """Encode each distinct prompt once: a batch has few."""
        tokens = {name: conditioning[name] for name in self.family.text_encoder_names}
        indices = conditioning if "prompt_index" in conditioning else distinct_prompts(tokens)
        distinct = {name: ids[indices["distinct_prompts"]] for name, ids in tokens.items()}
        embeddings = self.family.encode_tokens(distinct)
        return {name: embedding[indices["prompt_index"]] for name, embedding in embeddings.items()}


def distinct_prompts(tokens: Conditioning) -> Conditioning:
    """Return ``distinct_prompts``, the first example with each prompt, and ``prompt_index``, each example's prompt.

    A batch has them before it is copied to a GPU, which would be waited for: their number depends on the token ids.
    """
    distinct, index = torch.cat(list(tokens.values()), 1).unique(dim=0, return_inverse=True)
    prompts = index.tolist()
    first = [prompts.index(prompt) for prompt in range(len(distinct))]
    return {"distinct_prompts": torch.tensor(first, device=index.device), "prompt_index": index}
