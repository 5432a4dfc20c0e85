"""New words for a subject, learned with its adapter (Gal et al., arXiv 2208.01618; with weights, "pivotal tuning").

    e = ℓ u/√d,   u ∈ ℝᵈ trained on the sphere of radius √d

A word's vector keeps the length ℓ it starts with, that of an ordinary word, and only turns: vectors that grow are what
makes learned words drown the rest of a prompt. So it trains like a reflection's column, its rate in radians.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.tokens import token_files
from hra_diffusion.pipelines import set_tokens, token_embeddings, tokens_of
from hra_diffusion.pipelines.components import tokenizer_of
from hra_diffusion.training.config import AdapterConfig
from hra_diffusion.training.families import Family

_NAME = "default"
"""The adapter's name in the pipeline while it trains."""


@dataclass(frozen=True)
class TextualInversion:
    """The new words of a pipeline, as something to save."""

    pipe: Any

    def save_pretrained(self, save_directory: Path) -> None:
        """Write their files; the folder's name is theirs."""
        files = token_files(tokens_of(self.pipe, _NAME))
        write_together({save_directory.parent / path: data for path, data in files.items()})


def add_textual_inversion(
    family: Family, prompts: Sequence[str], captions: Collection[str], settings: AdapterConfig
) -> None:
    """Let a model's text encoders know the words in angle brackets in some prompts, to be trained on some captions.

    Raises:
        ConfigError: there is none, or no caption has it, or the model's pipeline has no place for them.
    """
    if odd := [word for prompt in prompts for word in re.findall(r"<[\w-]+>", prompt) if word != word.lower()]:
        raise ConfigError(f"The new word {odd[0]} has capitals, which the model does not see: write {odd[0].lower()}.")
    words = list(dict.fromkeys(word for prompt in prompts for word in re.findall(r"<[a-z0-9_-]+>", prompt)))
    if not words:
        raise ConfigError(
            f'--train_text_encoder_ti learns the words in angle brackets, and "{prompts[0]}" has none: write '
            '"a photo of a <sks> dog", in small letters.'
        )
    for word in words:
        if not any(word in caption for caption in captions):
            raise ConfigError(
                f"--train_text_encoder_ti is to learn {word}, which no caption has: write it into those of its "
                "images, or remove them, so that the instance prompt is their caption."
            )
    if not hasattr(family.pipe, "maybe_convert_prompt"):
        raise ConfigError(
            f"--train_text_encoder_ti does not go with a {family.pipeline_class}, which has no textual inversion in "
            "diffusers: leave it out."
        )
    tokens = {
        name: {word: _start(family.pipe, name, word, settings) for word in words} for name in family.text_encoder_names
    }
    set_tokens(family.pipe, _NAME, tokens)
    for embedding in token_embeddings(family.pipe).values():
        columns = embedding.hra_u_tokens
        with torch.no_grad():
            embedding.scale.copy_(columns.norm(dim=0) / sqrt(len(columns)))
            columns /= embedding.scale
        columns.requires_grad_()


def _start(pipe: Any, text_encoder_name: str, word: str, settings: AdapterConfig) -> Tensor:
    """Return what a word means at first: as many of the vectors of an ordinary one as it shall have, (n, d)."""
    tokenizer = tokenizer_of(pipe, text_encoder_name)
    ids = tokenizer(settings.initializer_concept or word.strip("<>"), add_special_tokens=False).input_ids
    wanted = [ids[at % len(ids)] for at in range(settings.num_new_tokens_per_abstraction)]
    return getattr(pipe, text_encoder_name).get_input_embeddings().weight.detach()[wanted].float()
