"""A model family: how its text encoders encode prompts, and how its denoiser is called."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hra_diffusion.pipelines.components import tokenizer_of
from hra_diffusion.pipelines.protocol import Pipeline

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


class Family(ABC):
    """A loaded model of some family, ready to train.

    Attributes:
        pipe: the diffusers pipeline; its adapted components are replaced in place.
    """

    pipeline_class: ClassVar[str]
    title: Any
    """The name of the family in messages, a text."""
    denoiser_name: ClassVar[str] = "unet"
    """The pipeline component that denoises."""
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """The trainable text encoders of the pipeline; each has a tokenizer of the same number."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe

    @property
    def model(self) -> Any:
        """The pipeline's denoiser: the frozen model, or the adapted one once adapters are added."""
        return getattr(self.pipe, self.denoiser_name)

    def unused_modules(self, name: str) -> str | None:
        """Return a regular expression of a component's modules without effect on predictions, or None.

        Such modules would learn nothing, and distributed training would wait for their gradients.
        """
        return None

    def last_layers(self, text_encoder_name: str, count: int) -> str | None:
        """Return a regular expression of the modules in a text encoder's last layers; None for no layer."""
        layers = getattr(self.pipe, text_encoder_name).config.num_hidden_layers
        names = "|".join(map(str, range(layers - count, layers)))
        return rf"(.*\.)?layers\.{f'({names})' if count > 1 else names}\..*" if count else None

    @abstractmethod
    def encode_tokens(self, tokens: Conditioning) -> Conditioning:
        """Embed token ids (prompts, tokens), named by text encoder, with the text encoders as they are."""

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Call the denoiser on latents (B, C, h, w) in its precision; timesteps (B,); returns (B, C, h, w)."""

    def prompt_parts(self, text_encoder_trains: bool) -> list[PromptPart]:
        """Return the parts of the encoding of prompts ahead of training.

        Prompts become token ids while the text encoders train, and embeddings otherwise.
        """
        if text_encoder_trains:
            return [PromptPart(encode=self._tokenize_prompts)]
        return [
            PromptPart(
                encode=self._embed_prompts,
                text_encoders=[getattr(self.pipe, name) for name in self.text_encoder_names],
                tokenizers=[tokenizer_of(self.pipe, name) for name in self.text_encoder_names],
            )
        ]

    def encode_prompts(self, prompts: list[str], text_encoder_trains: bool) -> Conditioning:
        """Encode prompts by all parts, each text encoder on its present device."""
        conditioning: Conditioning = {}
        for part in self.prompt_parts(text_encoder_trains):
            conditioning |= part.encode(prompts)
        return conditioning

    def denoiser(self, text_encoder_trains: bool) -> "Denoiser":
        """Return the module that maps (noisy latents, timesteps, conditioning) to the prediction."""
        return Denoiser(self, text_encoder_trains)

    def truncated_text(self, prompt: str) -> str:
        """Return the end of a prompt beyond the text encoders' maximum length; often ""."""
        ends = [""]
        for name in self.text_encoder_names:
            tokenizer, converted = self._convert_prompts(name, [prompt])
            (ids,) = tokenizer(converted, verbose=False).input_ids
            ends.append(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1]).strip())  # -1: the end token
        return max(ends, key=len)

    def _convert_prompts(self, text_encoder_name: str, prompts: list[str]) -> tuple[Any, list[str]]:
        """Return a text encoder's tokenizer, and prompts with one token for each vector of a learned token."""
        tokenizer = tokenizer_of(self.pipe, text_encoder_name)
        convert = getattr(self.pipe, "maybe_convert_prompt", lambda prompts, _: prompts)
        return tokenizer, convert(prompts, tokenizer)

    def _tokenize_prompts(self, prompts: list[str]) -> Conditioning:
        return {name: self._tokenize(name, prompts) for name in self.text_encoder_names}

    @torch.no_grad()
    def _embed_prompts(self, prompts: list[str]) -> Conditioning:
        embeddings = self.encode_tokens(self._tokenize_prompts(prompts))
        return {name: embedding.cpu() for name, embedding in embeddings.items()}

    def _tokenize(self, text_encoder_name: str, prompts: list[str]) -> Tensor:
        tokenizer, converted = self._convert_prompts(text_encoder_name, prompts)
        return tokenizer(
            converted,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids


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
