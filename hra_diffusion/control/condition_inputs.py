"""The input of a condition into a denoiser: the first layer, whose output receives the encoder's features.

    UNet      conv_in      (B, C, h, w)   a feature for each latent pixel
    FLUX.2    x_embedder   (B, n, C)      a feature for each token of the generated image: 2 × 2 latent pixels

Another kind of denoiser is a class here, and for a transformer a row of ``_TRANSFORMERS``. Training, pipelines and
files of controls read everything about the denoiser from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hra_diffusion.errors import ModelError
from hra_diffusion.pipelines.components import bare_model
from hra_diffusion.pipelines.kinds import size_multiple
from hra_diffusion.pipelines.protocol import Pipeline


@dataclass(frozen=True, kw_only=True)
class DenoiserCall:
    """A pipeline's call of its denoiser."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    context: str | None = None
    """The name that the pipeline gives to the call: cond, uncond, or None for a call with both predictions."""


class ConditionInput(ABC):
    """The layer of a denoiser whose output receives features (B, C, h, w), and the denoiser's calls in a pipeline."""

    layer_name: ClassVar[str]
    families: ClassVar[str]
    """Names of the models, for messages."""

    def layer(self, denoiser: nn.Module) -> nn.Module:
        """Return the layer of a denoiser, with or without adapters."""
        return getattr(denoiser, self.layer_name)

    @abstractmethod
    def channels(self, denoiser: Any) -> int:
        """Return the number of channels C of the layer's output."""

    @abstractmethod
    def scale_factor(self, pipe: Pipeline) -> int:
        """Return the side of a feature in pixels of the image."""

    @abstractmethod
    def add_features(self, output: Tensor, features: Tensor, call: DenoiserCall | None = None) -> Tensor:
        """Add features (B, C, h, w) to the layer's output; without a call, all of it is of the generated image."""

    @abstractmethod
    def grid(self, output: Tensor, call: DenoiserCall) -> tuple[int, int]:
        """Return height h and width w of the features for a call and the layer's output."""

    @abstractmethod
    def progress(self, pipe: Pipeline, call: DenoiserCall) -> float:
        """Return the progress of the denoising, from 0 (noise) to 1, at a call."""

    @abstractmethod
    def guided_parts(self, pipe: Pipeline, call: DenoiserCall) -> Sequence[bool]:
        """Return, for the equal parts of a call's batch, whether guidance strengthens them: not the unconditional."""


class UNetInput(ConditionInput):
    """A UNet's first convolution; a call has both predictions of classifier-free guidance, the unconditional first."""

    layer_name = "conv_in"
    families = "Stable Diffusion 1, 2, XL"

    def channels(self, denoiser: Any) -> int:
        """See :class:`ConditionInput`."""
        return denoiser.conv_in.out_channels

    def scale_factor(self, pipe: Pipeline) -> int:
        """See :class:`ConditionInput`."""
        return pipe.vae_scale_factor

    def add_features(self, output: Tensor, features: Tensor, call: DenoiserCall | None = None) -> Tensor:
        """See :class:`ConditionInput`."""
        return output + features

    def grid(self, output: Tensor, call: DenoiserCall) -> tuple[int, int]:
        """See :class:`ConditionInput`."""
        height, width = output.shape[2:]
        return height, width

    def progress(self, pipe: Pipeline, call: DenoiserCall) -> float:
        """See :class:`ConditionInput`."""
        timestep = call.kwargs["timestep"] if "timestep" in call.kwargs else call.args[1]
        return 1 - _first(timestep) / pipe.scheduler.config.num_train_timesteps

    def guided_parts(self, pipe: Pipeline, call: DenoiserCall) -> Sequence[bool]:
        """See :class:`ConditionInput`."""
        return (False, True) if pipe.do_classifier_free_guidance else (True,)


class Flux2Input(ConditionInput):
    """FLUX.2's embedding of image tokens, whose positions are (image, row, column, 0); the generated image is 0.

    The predictions of classifier-free guidance are two calls, named cond and uncond. Reference images are more tokens
    of the same sequence, before or behind those of the generated image; they receive no features.
    """

    layer_name = "x_embedder"
    families = "FLUX.2"

    def channels(self, denoiser: Any) -> int:
        """See :class:`ConditionInput`."""
        return denoiser.x_embedder.out_features

    def scale_factor(self, pipe: Pipeline) -> int:
        """See :class:`ConditionInput`."""
        return size_multiple(pipe)

    def add_features(self, output: Tensor, features: Tensor, call: DenoiserCall | None = None) -> Tensor:
        """See :class:`ConditionInput`."""
        tokens = features.flatten(2).mT
        if call is None or tokens.shape[1] == output.shape[1]:
            return output + tokens
        (generated,) = (_positions(call)[:, 0] == 0).nonzero(as_tuple=True)
        return output.index_add(1, generated, tokens)

    def grid(self, output: Tensor, call: DenoiserCall) -> tuple[int, int]:
        """See :class:`ConditionInput`."""
        positions = _positions(call)
        generated = positions[positions[:, 0] == 0]
        height, width = (generated[:, 1:3].amax(0) + 1).tolist()
        return int(height), int(width)

    def progress(self, pipe: Pipeline, call: DenoiserCall) -> float:
        """See :class:`ConditionInput`: the pipeline divides the timesteps by 1000."""
        return 1 - _first(call.kwargs["timestep"])

    def guided_parts(self, pipe: Pipeline, call: DenoiserCall) -> Sequence[bool]:
        """See :class:`ConditionInput`."""
        return (call.context != "uncond",)


_TRANSFORMERS: Mapping[str, ConditionInput] = {"Flux2Transformer2DModel": Flux2Input()}
"""Inputs by the class of the transformer."""


def condition_input(denoiser: nn.Module) -> ConditionInput:
    """Return the input of a condition into a denoiser, with or without adapters.

    Raises:
        ModelError: the denoiser has none.
    """
    bare = bare_model(denoiser)
    if by_name := _TRANSFORMERS.get(type(bare).__name__):
        return by_name
    if hasattr(bare, UNetInput.layer_name):
        return UNetInput()
    families = ", ".join(known.families for known in (UNetInput, *_TRANSFORMERS.values()))
    raise ModelError(f"A {type(bare).__name__} takes no control: use a model of one of these families: {families}.")


@contextmanager
def recorded_contexts(denoiser: Any) -> Iterator[list[str]]:
    """Record the names of a transformer's calls within a ``with`` block, the present ones last.

    Args:
        denoiser: the bare denoiser; one without diffusers' ``cache_context`` has no names.
    """
    names: list[str] = []
    present = getattr(denoiser, "cache_context", None)
    if present is None:
        yield names
        return

    @contextmanager
    def cache_context(name: str, **details: Any) -> Iterator[None]:
        names.append(name)
        try:
            with present(name, **details):
                yield
        finally:
            names.pop()

    outer = vars(denoiser).get("cache_context")
    denoiser.cache_context = cache_context
    try:
        yield names
    finally:
        del denoiser.cache_context
        if outer is not None:
            denoiser.cache_context = outer


def _first(timestep: Any) -> float:
    """Return the first of the timesteps of a batch."""
    return torch.as_tensor(timestep).flatten()[0].item()


def _positions(call: DenoiserCall) -> Tensor:
    """Return the positions (n, 4) of the image tokens of a call, which all rows of the batch share."""
    positions = call.kwargs["img_ids"]
    return positions[0] if positions.ndim == 3 else positions
