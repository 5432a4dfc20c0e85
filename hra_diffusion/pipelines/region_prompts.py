"""A prompt for each region: its pixels read this prompt alone, encoded with the region's adapter.

In one prompt for all subjects, each later subject is read after the earlier ones: a text encoder gives its words
another meaning than in the training of its adapter, and the subject comes out as its class. So the text of
cross-attention is here the call's prompt, followed by the prompts of the regions. A pixel attends to the tokens of the
regions that hold it, all other pixels to those of the call's prompt:

    softmax(q Kᵀ / √d + m) V,    m = 0 for the tokens that a pixel reads, −∞ for the others

An adapter is active for all tokens of its prompt, and of the negative prompt of classifier-free guidance, as in its
training. The pixels of a region meet the others in self-attention and convolutions.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.masks import Mask, TokenMask
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.trigger_words import Phrase, named_in, quoted_choices
from hra_diffusion.pipelines.components import adapted_components, offloading_suspended, text_encoders
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.strengths import ComponentStrengths
from hra_diffusion.text import shorten


class Encoded(NamedTuple):
    """Embeddings (1, tokens, features) of a region's prompt, and of the negative prompt with the region's adapter."""

    prompt: Tensor
    negative: Tensor


def check_prompts(
    prompts: Mapping[str, str], masks: Mapping[str, Any], phrases: Mapping[str, tuple[Phrase, ...]]
) -> None:
    """Raise ConfigError for prompts without a region or a trigger word, and for regions without a prompt."""
    if prompts and (wrong := prompts.keys() ^ masks.keys()):
        raise ConfigError(
            "prompts are those of the regions of bind='region', one for each mask or none at all: give both or neither "
            f"of {shorten(sorted(wrong))}."
        )
    for name, prompt in prompts.items():
        if not named_in(prompt, {name: phrases[name]}):
            words = quoted_choices(phrases[name])
            raise ConfigError(f"The prompt for the region of {name!r} lacks its trigger word, {words}: write it.")


@torch.no_grad()
def encode_prompts(
    pipe: Pipeline,
    prompts: Mapping[str, str],
    strengths: Mapping[str, ComponentStrengths],
    options: Mapping[str, Any],
) -> dict[str, Encoded]:
    """Encode the prompt of each region with its adapter.

    Args:
        pipe: a pipeline with a UNet.
        prompts: the prompt of each adapter's region.
        strengths: the adapters' strengths by component.
        options: the call's negative_prompt and clip_skip, where it has them.

    Raises:
        ConfigError: the images of the call have different negative prompts.
    """
    negative = options.get("negative_prompt")
    texts = {negative} if negative is None or isinstance(negative, str) else set(negative)
    if len(texts) > 1:
        raise ConfigError("Regions with prompts need one negative prompt for all images: give one at a time.")
    encoders = {name: model for name, model in adapted_components(pipe).items() if name in text_encoders(pipe)}
    encoded: dict[str, Encoded] = {}
    for name, prompt in prompts.items():
        with ExitStack() as undo:
            with offloading_suspended(pipe):
                for component, model in encoders.items():
                    undo.callback(model._restorer())
                    present = [name] if name in model.peft_config else []
                    model.set_adapters(present, [strengths[name][component] for _ in present])
            embeds = pipe.encode_prompt(
                prompt,
                device=pipe._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
                negative_prompt=next(iter(texts), None),
                clip_skip=options.get("clip_skip"),
            )
        encoded[name] = Encoded(*embeds[:2])
    return encoded


class RegionPrompts:
    """The prompts of regions as text of a UNet's cross-attention.

    Args:
        encoded: the embeddings for each adapter.
        masks: the regions.
        images: number of images in the batch.

    Attributes:
        tokens: the mask of each adapter's own tokens, for `adapter.masks.MaskedRows`.
    """

    def __init__(self, encoded: Mapping[str, Encoded], masks: Mapping[str, Mask], images: int) -> None:
        self._encoded, self._masks, self._images = encoded, masks, images
        self._length = next(iter(encoded.values())).prompt.shape[1]  # of all prompts: that of the text encoder
        text = torch.arange(self._length * (1 + len(encoded))) // self._length
        self.tokens = {name: TokenMask(text == number) for number, name in enumerate(encoded, start=1)}
        self._biases: dict[Any, Tensor] = {}

    def attach(self, unet: nn.Module) -> ExitStack:
        """Let a UNet read the prompts; closing the result ends it."""
        with ExitStack() as undo:
            undo.callback(unet.register_forward_pre_hook(self._add_tokens, with_kwargs=True).remove)
            for name, attention in unet.named_modules():
                if name.endswith("attn2") and hasattr(attention, "heads"):
                    undo.callback(attention.register_forward_pre_hook(self._mask_tokens, with_kwargs=True).remove)
            return undo.pop_all()

    def _add_tokens(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Append the regions' tokens to the text; of the series of images, guidance's first one is unconditional."""
        text: Tensor = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        series = max(1, len(text) // self._images)
        parts = [text]
        for negative, prompt in ((embeds.negative, embeds.prompt) for embeds in self._encoded.values()):
            rows = [negative if number == 0 and series > 1 else prompt for number in range(series)]
            parts.append(torch.cat([row.expand(self._images, -1, -1) for row in rows]).to(text))
        joined = torch.cat(parts, dim=1)
        if len(args) > 2:
            return (*args[:2], joined, *args[3:]), kwargs
        return args, kwargs | {"encoder_hidden_states": joined}

    def _mask_tokens(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pixels: Tensor = args[0] if args else kwargs["hidden_states"]
        text: Tensor = kwargs["encoder_hidden_states"]
        return args, kwargs | {"attention_mask": self._bias(pixels, text.shape[1])}

    def _bias(self, pixels: Tensor, tokens: int) -> Tensor:
        """Return m for pixels (batch, pixels, features), of shape (batch, pixels, tokens)."""
        key = pixels.shape[:2], tokens, pixels.device, pixels.dtype
        if key not in self._biases:
            is_read = torch.zeros(pixels.shape[1], tokens, dtype=torch.bool, device=pixels.device)
            outside = torch.ones_like(is_read[:, :1])
            for name, mask in self._masks.items():
                inside = mask.tokens(pixels.shape[1], pixels.device)
                is_read |= inside & self.tokens[name].tokens(tokens, pixels.device).mT
                outside &= ~inside
            is_read[:, : self._length] |= outside
            bias = torch.zeros(is_read.shape, dtype=pixels.dtype, device=pixels.device)
            self._biases[key] = bias.masked_fill_(~is_read, float("-inf")).expand(len(pixels), -1, -1)
        return self._biases[key]
