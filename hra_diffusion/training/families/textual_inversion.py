"""Textual inversion (Gal et al., arXiv 2208.01618): new tokens, trained with an adapter ("pivotal tuning").

    e = ℓ u/√d,   u ∈ ℝᵈ trained on the sphere of radius √d

A token embedding keeps its initial length ℓ, that of an ordinary token, and only changes its direction: long embeddings
would outweigh the rest of a prompt. It therefore trains like a reflection's column, at a learning rate in radians.
"""

import re
from collections.abc import Collection, Sequence
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.tokens import token_files
from hra_diffusion.pipelines import set_tokens, token_embeddings, tokens_of
from hra_diffusion.pipelines.components import tokenizer_of
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import AdapterConfig
from hra_diffusion.training.families import Family

_NAME = "default"
"""The adapter's name in the pipeline while it trains."""


def save_tokens(pipe: Pipeline, folder: Path) -> None:
    """Write the files of a pipeline's trained token embeddings; ``folder`` ends with ``formats.tokens.FOLDER``."""
    files = token_files(tokens_of(pipe, _NAME))
    write_together({folder.parent / path: data for path, data in files.items()})


def add_textual_inversion(
    family: Family, prompts: Sequence[str], captions: Collection[str], settings: AdapterConfig
) -> None:
    """Add trainable tokens to a model's text encoders, for the words in angle brackets of the prompts.

    Args:
        family: the model.
        prompts: the subjects' prompts.
        captions: captions of the training images; each word has to occur in one of them.
        settings: initial embeddings and the number of vectors.

    Raises:
        ConfigError: no prompt has such a word, no caption has the word, or the pipeline has no textual inversion.
    """
    if capitals := [word for prompt in prompts for word in re.findall(r"<[\w-]+>", prompt) if word != word.lower()]:
        raise ConfigError(
            f"The new word {capitals[0]} has capitals, which the model ignores: write {capitals[0].lower()}."
        )
    words = list(dict.fromkeys(word for prompt in prompts for word in re.findall(r"<[a-z0-9_-]+>", prompt)))
    if not words:
        raise ConfigError(
            f'--train_text_encoder_ti learns the words in angle brackets, and "{prompts[0]}" has none: write '
            '"a photo of a <sks> dog", in small letters.'
        )
    for word in words:
        if not any(word in caption for caption in captions):
            raise ConfigError(
                f"--train_text_encoder_ti has to learn {word}, which no caption has: write it into the captions of "
                "its images, or remove the captions, so that the instance prompt is used instead."
            )
    if not hasattr(family.pipe, "maybe_convert_prompt"):
        raise ConfigError(
            f"--train_text_encoder_ti does not support a {family.pipeline_class}, which has no textual inversion in "
            "diffusers: leave it out."
        )
    tokens = {
        name: {word: _initial_embedding(family.pipe, name, word, settings) for word in words}
        for name in family.text_encoder_names
    }
    set_tokens(family.pipe, _NAME, tokens)
    for embedding in token_embeddings(family.pipe).values():
        columns = embedding.hra_u_tokens
        with torch.no_grad():
            embedding.scale.copy_(columns.norm(dim=0) / sqrt(len(columns)))
            columns /= embedding.scale
        columns.requires_grad_()


def _initial_embedding(pipe: Pipeline, text_encoder_name: str, word: str, settings: AdapterConfig) -> Tensor:
    """Return the token embeddings of an ordinary word, repeated to the number of vectors n: (n, d)."""
    tokenizer = tokenizer_of(pipe, text_encoder_name)
    ids = tokenizer(settings.initializer_concept or word.strip("<>"), add_special_tokens=False).input_ids
    chosen = [ids[index % len(ids)] for index in range(settings.num_new_tokens_per_abstraction)]
    return getattr(pipe, text_encoder_name).get_input_embeddings().weight.detach()[chosen].float()
