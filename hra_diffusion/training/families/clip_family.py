"""Families with CLIP text encoders, which can be trained: prompts of one length, without a template."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from hra_diffusion.pipelines.components import tokenizer_of
from hra_diffusion.training.families.family import Conditioning, Family, PromptPart


class ClipFamily(Family):
    """A family whose CLIP text encoders can be trained."""

    denoiser_name: ClassVar[str] = "unet"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)

    @abstractmethod
    def encode_tokens(self, tokens: Conditioning) -> Conditioning:
        """See :class:`Family`."""

    def last_layers(self, text_encoder_name: str, count: int) -> str | None:
        """Return a regular expression of the modules in a text encoder's last layers; None for no layer."""
        layers = getattr(self.pipe, text_encoder_name).config.num_hidden_layers
        names = "|".join(map(str, range(layers - count, layers)))
        return rf"(.*\.)?layers\.{f'({names})' if count > 1 else names}\..*" if count else None

    def prompt_parts(self, text_encoder_trains: bool) -> list[PromptPart]:
        """See :class:`Family`."""
        if text_encoder_trains:
            return [PromptPart(encode=self._tokenize_prompts)]
        return [
            PromptPart(
                encode=self._embed_prompts,
                text_encoders=[getattr(self.pipe, name) for name in self.text_encoder_names],
                tokenizers=[tokenizer_of(self.pipe, name) for name in self.text_encoder_names],
            )
        ]

    def truncated_text(self, prompt: str) -> str:
        """See :class:`Family`."""
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
