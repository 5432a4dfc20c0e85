"""Adapters bound to tokens or to regions of an image, in pipelines with a UNet.

A layer of a text encoder, and keys and values of cross-attention, have the tokens of the prompt as rows. There an
adapter is active in the tokens of its trigger word and of the noun after it. All other layers of the UNet have the
pixels of the image as rows. There an adapter that is bound to tokens is inactive, and one that is bound to a region is
active inside of its mask, at each layer's resolution. The halves of classifier-free guidance have the same masks.

`adapter.masks` has the equation.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hra_diffusion.adapter.masks import ImageMask, Mask, MaskedRows, TokenMask
from hra_diffusion.adapter.strengths import Strength, strength_in
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.trigger_words import Phrase, quoted_choices
from hra_diffusion.pipelines.attention_masks import AttentionMasks
from hra_diffusion.pipelines.components import (
    adapted_components,
    bare_model,
    denoiser_name,
    text_encoders,
    tokenizer_of,
)
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.region_prompts import Encoded, RegionPrompts
from hra_diffusion.pipelines.strengths import ComponentStrengths

RegionMask = Image.Image | Tensor | np.ndarray[Any, Any]
"""An image whose white pixels are inside, or values from 0 to 1 of shape (height, width)."""

_TEXT_LAYERS = (".attn2.to_k", ".attn2.to_v")
"""Layers of a UNet whose rows are the tokens of the prompt."""


def read_mask(name: str, mask: RegionMask) -> Tensor:
    """Return an adapter's mask as values (height, width) from 0 to 1.

    Raises:
        ConfigError: it has another shape, or nothing is inside.
    """
    if isinstance(mask, Image.Image):
        values = torch.from_numpy(np.asarray(mask.convert("L"), dtype=np.float32) / 255)
    else:
        values = torch.as_tensor(mask).detach().float().cpu()
    if values.dim() != 2 or not values.numel():
        raise ConfigError(
            f"The mask of {name!r} has the shape {tuple(values.shape)}: give an image, or values of shape (height, "
            "width)."
        )
    if not (values > 0.5).any():
        raise ConfigError(f"The mask of {name!r} has nothing inside: make its region white, or 1.")
    return values


def check_size(masks: Mapping[str, Tensor], height: int, width: int) -> None:
    """Raise ConfigError for a mask with other proportions than the image, in pixels."""
    for name, mask in masks.items():
        if abs(mask.shape[0] * width - mask.shape[1] * height) > max(height, width):
            raise ConfigError(
                f"The mask of {name!r} is {mask.shape[1]} × {mask.shape[0]}, and the image {width} × {height}: give a "
                "mask of the image's proportions."
            )


def check_unet(pipe: Pipeline) -> None:
    """Raise ConfigError for a pipeline without a UNet."""
    if denoiser_name(pipe) != "unet":
        raise ConfigError(
            f"A {type(pipe).__name__} has no UNet, which adapters bound to tokens or regions need: use bind='prompt'."
        )


def activate_masks(
    pipe: Pipeline,
    prompt: str,
    strengths: Mapping[str, ComponentStrengths],
    phrases: Mapping[str, tuple[Phrase, ...]],
    masks: Mapping[str, Tensor] | None,
    images: int = 1,
    encoded: Mapping[str, Encoded] | None = None,
) -> ExitStack:
    """Activate adapters inside of their masks; closing the result ends it.

    Args:
        pipe: a pipeline with a UNet.
        prompt: the prompt of all images.
        strengths: the strengths of the adapters by component.
        phrases: the trigger words of each.
        masks: the regions of the image, of shape (height, width), from 0 to 1; none for adapters bound to tokens, and
            None for regions that attention to the trigger words makes.
        images: number of images.
        encoded: the prompts of the regions, if they have prompts.

    Raises:
        ConfigError: the prompt does not hold a trigger word.
    """
    encoders = list(text_encoders(pipe))
    regions: Mapping[str, Mask] = {name: ImageMask(mask) for name, mask in (masks or {}).items()}
    tokens: Mapping[str, Mapping[str, Mask]]
    with ExitStack() as undo:
        if encoded:
            prompts = RegionPrompts(encoded, regions, images)
            undo.push(prompts.attach(bare_model(pipe.unet)))
            tokens = {encoder: {} for encoder in encoders} | {"unet": prompts.tokens}
        else:
            own_tokens = {
                encoder: {name: _token_mask(pipe, encoder, prompt, name, phrases[name]) for name in strengths}
                for encoder in encoders
            }
            tokens = {**own_tokens, "unet": own_tokens[encoders[0]]}
            if masks is None:
                attention = AttentionMasks(
                    {name: mask.inside for name, mask in own_tokens[encoders[0]].items()}, images
                )
                undo.push(attention.record(bare_model(pipe.unet)))
                regions = attention.masks
        for component, model in adapted_components(pipe).items():
            present = {
                name: by_component[component] for name, by_component in strengths.items() if name in model.peft_config
            }
            choose = partial(_rows_of, present, tokens[component])
            layers: Callable[[str], MaskedRows] = partial(choose, regions if component == "unet" else None)
            undo.enter_context(model._activation.masked(layers, list(present)))
        return undo.pop_all()


def _rows_of(
    strengths: Mapping[str, Strength],
    tokens: Mapping[str, Mask],
    images: Mapping[str, Mask] | None,
    layer: str,
) -> MaskedRows:
    """Return the masks of a layer; `images` is None in a text encoder."""
    is_text = f".{layer}".endswith(_TEXT_LAYERS)
    masks: Mapping[str, Mask] = tokens if images is None or is_text else images
    names = [name for name in strengths if name in masks]
    mixtures = [(((name, strength_in(strengths[name], layer)),),) for name in names]
    return MaskedRows(mixtures, [masks[name] for name in names])


def _token_mask(pipe: Pipeline, encoder: str, prompt: str, name: str, phrases: tuple[Phrase, ...]) -> TokenMask:
    """Return the mask of an adapter's trigger words over the tokens of a prompt.

    Raises:
        ConfigError: the prompt does not hold any of them.
    """
    tokenizer = tokenizer_of(pipe, encoder)
    length = tokenizer.model_max_length
    texts = pipe.maybe_convert_prompt([prompt, *(" ".join(phrase) for phrase in phrases)], tokenizer)
    ids = tokenizer(texts[0], padding="max_length", max_length=length, truncation=True).input_ids
    inside = torch.zeros(len(ids), dtype=torch.bool)
    for text in texts[1:]:
        phrase_ids = tokenizer(text, add_special_tokens=False).input_ids
        for start in range(len(ids) - len(phrase_ids) + 1):
            if ids[start : start + len(phrase_ids)] == phrase_ids:
                inside[start : start + len(phrase_ids)] = True
    if not inside.any():
        raise ConfigError(
            f"The prompt does not hold the trigger word of the adapter {name!r}, {quoted_choices(phrases)}, within the "
            f"{length} tokens that are read: write it, or leave the adapter out."
        )
    return TokenMask(inside)
