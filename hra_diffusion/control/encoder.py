"""The condition encoder: convolutions with one output, added after the denoiser's first layer.

    h₀ = conv_in(x_t) + Z φ(c),   c of shape (B, 3, H, W) in [0, 1],   φ(c) of the latent's height and width

Z starts at zero, so the first prediction is the base model's. φ is ControlNet's (Zhang et al., arXiv 2302.05543), as in
the HRA paper (arXiv 2405.17484, section 5.2). ControlNet reads φ(c) with a copy of half of the denoiser; here the
denoiser itself reads φ(c), adapted by reflections.

In a transformer, the layer is the embedding of patches, and φ(c) has their height and width: see
:mod:`hra_diffusion.control.condition_inputs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from PIL import Image
from torch import Tensor

from hra_diffusion.control.annotators import Annotator, make_annotator
from hra_diffusion.control.condition_inputs import condition_input
from hra_diffusion.pipelines.components import denoiser_name
from hra_diffusion.pipelines.protocol import Pipeline

WIDTHS = (16, 32, 96, 256)
"""Channels at full size, at half size, …; further halvings keep the last number."""


class ConditionEncoder(ModelMixin, ConfigMixin):
    """A map from conditions to features of the denoiser; its config holds the annotator.

    Args:
        out_channels: of the denoiser's first layer.
        scale_factor: ratio of the image's side to that of the features, a power of two.
        annotator: name of the conditions' annotator.
        annotator_settings: settings of the annotator.
    """

    @register_to_config
    def __init__(
        self,
        out_channels: int = 320,
        scale_factor: int = 8,
        annotator: str = "given",
        annotator_settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        halvings = scale_factor.bit_length() - 1
        widths = (*WIDTHS, *(WIDTHS[-1:] * halvings))[: halvings + 1]
        self.embedding = ControlNetConditioningEmbedding(out_channels, 3, widths)

    @property
    def annotator(self) -> Annotator:
        """The annotator of its conditions."""
        return make_annotator(self.config["annotator"], self.config["annotator_settings"])

    def forward(self, conditions: Tensor) -> Tensor:
        """Encode conditions (B, 3, H, W) in [0, 1]: (B, out_channels, H / scale_factor, W / scale_factor)."""
        return self.embedding(conditions)


def make_encoder(pipe: Pipeline, annotator: Annotator, generator: torch.Generator) -> ConditionEncoder:
    """Make a fresh encoder for a pipeline's denoiser; the generator's state decides its weights.

    Raises:
        ModelError: the denoiser takes no control.
    """
    denoiser = getattr(pipe, denoiser_name(pipe))
    target = condition_input(denoiser)
    with torch.random.fork_rng(devices=()):  # torch.manual_seed would seed all devices
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return ConditionEncoder(
            out_channels=target.channels(denoiser),
            scale_factor=target.scale_factor(pipe),
            annotator=annotator.name,
            annotator_settings=asdict(annotator),
        )


def to_conditions(images: Sequence[Image.Image]) -> Tensor:
    """Convert images of one size to conditions: (B, 3, H, W) in [0, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return pixels.permute(0, 3, 1, 2).float() / 255
