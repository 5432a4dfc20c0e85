"""Prompts of any length and with A1111's weights, as embeddings of a pipeline's own text encoders.

A long prompt is divided between words into chunks of the text encoders' length (75 tokens of CLIP). The embeddings of
the chunks are joined, as in A1111, ComfyUI and compel. A weight w moves the embeddings e of its tokens away from those
of the empty prompt, e₀, to e₀ + w (e − e₀), as in ComfyUI; all others are unchanged.
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.binding import binding_of, remember_prompts
from hra_diffusion.pipelines.bound_activation import bound_to
from hra_diffusion.pipelines.components import denoiser_name, text_encoders, tokenizer_of
from hra_diffusion.pipelines.prompt_weights import MAX_CHARACTERS, Fragment, PromptSyntax, parse_weights
from hra_diffusion.pipelines.protocol import Pipeline

logger = logging.getLogger(__name__)


class _Word(NamedTuple):
    """A word of a prompt with its weight and its number of tokens for each text encoder."""

    text: str
    weight: float
    counts: tuple[int, ...]


def prompt_options(
    pipe: Pipeline,
    prompt: str,
    negative_prompt: str | None = None,
    *,
    syntax: PromptSyntax = "a1111",
    clip_skip: int | None = None,
) -> dict[str, Any]:
    """Return a pipeline's options for a prompt of any length, with weights.

    They are embeddings with the active adapters, or those bound to the prompt, but texts for short prompts without
    weights.

    Args:
        pipe: a text-to-image pipeline.
        prompt: the prompt; text beyond 8,000 characters is ignored.
        negative_prompt: content to avoid.
        syntax: "a1111" for long prompts with weights (`parse_weights`), "plain" for texts as they are.
        clip_skip: number of CLIP's last layers to skip; by default that of the pipeline.

    Raises:
        ConfigError: the syntax is unknown, or a weight is above 10.
    """
    if syntax not in get_args(PromptSyntax):
        raise ConfigError(f"--prompt_syntax is {syntax!r}: give {' or '.join(get_args(PromptSyntax))}.")
    texts = {"prompt": prompt, "negative_prompt": negative_prompt}
    if syntax == "plain":
        return texts
    parsed = {name: parse_weights(text[:MAX_CHARACTERS]) for name, text in texts.items() if text is not None}
    if not reads_weights(pipe):
        if any(fragment.weight != 1 for fragments in parsed.values() for fragment in fragments):
            logger.warning("The prompt has weights, which are read for CLIP models alone: brackets are text here.")
        return texts
    words = {name: _words(pipe, fragments) for name, fragments in parsed.items()}
    limit = _limit(pipe)
    if all(_is_short(part, limit) for part in words.values()):
        return texts | {name: "".join(fragment.text for fragment in part) for name, part in parsed.items()}
    if (binding := binding_of(pipe)) is not None and binding.bind != "prompt":
        raise ConfigError(
            f"The adapters are bound to {binding.bind}, which needs a prompt without weights, of one text encoder's "
            "length: shorten it."
        )
    text = plain_text(prompt, syntax)
    with bound_to(pipe, [text]):
        encoded = _encode(pipe, {name: _chunks(part, limit) for name, part in words.items()}, clip_skip)
    remember_prompts(encoded["prompt_embeds"], [text])
    return {"prompt": None} | encoded


def plain_text(prompt: str, syntax: PromptSyntax) -> str:
    """Return a prompt without the brackets and numbers of its weights."""
    return prompt if syntax == "plain" else "".join(text for text, _ in parse_weights(prompt[:MAX_CHARACTERS]))


def reads_weights(pipe: Pipeline) -> bool:
    """Whether a pipeline's prompts can be long and have weights: Stable Diffusion 1, 2 and XL."""
    return denoiser_name(pipe) == "unet" and hasattr(pipe, "maybe_convert_prompt")


def _limit(pipe: Pipeline) -> int:
    """Return the number of tokens of a chunk, without the start and the end."""
    return min(tokenizer_of(pipe, name).model_max_length for name in text_encoders(pipe)) - 2


def _words(pipe: Pipeline, fragments: Iterable[Fragment]) -> list[_Word]:
    """Divide a prompt into words; a word that fits into no chunk is divided, too."""
    limit = _limit(pipe)
    size = max(1, limit // 4)  # a character has at most four bytes, and as many tokens
    pieces = list[Fragment]()
    for text, weight in fragments:
        for word in text.split():
            parts = _divided(word, size) if len(word) > limit else [word]
            pieces += [Fragment(part, weight) for part in parts]
    words = list[_Word]()
    for (text, weight), counts in zip(pieces, _token_counts(pipe, [text for text, _ in pieces]), strict=True):
        if max(counts) <= limit:
            words.append(_Word(text, weight, counts))
        else:
            parts = _divided(text, size)
            words += [_Word(part, weight, c) for part, c in zip(parts, _token_counts(pipe, parts), strict=True)]
    return words


def _divided(word: str, size: int) -> list[str]:
    """Divide a word into parts of `size` characters."""
    return [word[start : start + size] for start in range(0, len(word), size)]


def _token_counts(pipe: Pipeline, words: list[str]) -> list[tuple[int, ...]]:
    """Return the number of tokens of each word for each text encoder, with those of learned tokens."""
    if not words:
        return []
    counts = list[list[int]]()
    for name in text_encoders(pipe):
        tokenizer = tokenizer_of(pipe, name)
        converted = pipe.maybe_convert_prompt(words, tokenizer)
        counts.append([len(ids) for ids in tokenizer(converted, add_special_tokens=False, verbose=False).input_ids])
    return list(zip(*counts, strict=True))


def _is_short(words: list[_Word], limit: int) -> bool:
    """Whether a prompt has one chunk and no weights."""
    return all(word.weight == 1 for word in words) and len(_chunks(words, limit)) == 1


def _chunks(words: list[_Word], limit: int) -> list[list[_Word]]:
    """Divide a prompt into chunks of at most `limit` tokens for every text encoder; an empty prompt is one chunk."""
    chunks, used = [list[_Word]()], [0]
    for word in words:
        total = [sum(counts) for counts in zip(used, word.counts, strict=False)] if chunks[-1] else [*word.counts]
        if max(total) > limit and chunks[-1]:
            chunks.append([])
            total = [*word.counts]
        chunks[-1].append(word)
        used = total
    return chunks


@torch.no_grad()
def _encode(pipe: Pipeline, chunks: dict[str, list[list[_Word]]], clip_skip: int | None) -> dict[str, Tensor]:
    """Encode the chunks as one batch, with an empty prompt at its end; the shorter prompt is filled up with empty ones.

    The encoding is the pipeline's own: a missing negative prompt of SDXL is zero, and clip skip is the prompt's alone.
    """
    count = max(map(len, chunks.values()))
    texts = {
        name: [*(" ".join(word.text for word in chunk) for chunk in part), *[""] * (count + 1 - len(part))]
        for name, part in chunks.items()
    }
    embeds, negative, *pooled = pipe.encode_prompt(
        **texts,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        clip_skip=clip_skip,
    )
    options = {
        "prompt_embeds": _weighted(pipe, embeds, chunks["prompt"]),
        "negative_prompt_embeds": _weighted(pipe, negative, chunks.get("negative_prompt", [])),
    }
    names = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return options | {name: tensor[:1] for name, tensor in zip(names, pooled, strict=False)}


def _weighted(pipe: Pipeline, embeds: Tensor, chunks: list[list[_Word]]) -> Tensor:
    """Weigh embeddings (chunks + 1, tokens, features), of which the last is the empty prompt's, and join them.

    Returns (1, chunks × tokens, features).
    """
    encoded, empty = embeds[:-1], embeds[-1:]
    excess = torch.zeros_like(encoded)
    widths = [model.config.hidden_size for model in text_encoders(pipe).values()]
    for chunk, rows in zip(chunks, excess, strict=False):
        for encoder, columns in enumerate(rows.split(widths, dim=1)):
            weights = [word.weight - 1 for word in chunk for _ in range(word.counts[encoder])][: len(rows) - 2]
            columns[1 : 1 + len(weights)] = torch.tensor(weights).to(columns)[:, None]
    return (encoded + excess * (encoded - empty)).flatten(0, 1)[None]
