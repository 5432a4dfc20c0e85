"""Learned tokens in a pipeline: words of its prompts whose embeddings came with an adapter (arXiv 2208.01618).

The original embeddings are never touched: a token's number is beyond theirs, and looked up in a table beside them. A
token of several vectors is spelled `<sks> <sks>_1 …` before it is looked up, as diffusers' pipelines do by themselves.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from hra_diffusion.adapter import HRAModel
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.tokens import Tokens
from hra_diffusion.pipelines.components import models, tokenizer_name, tokenizer_of


class TokenEmbedding(nn.Embedding):
    """An embedding with more tokens than it was made with; saved, it is the original one.

    Attributes:
        hra_u_tokens: the vectors as columns (d, n), each divided by its ``scale``.
        scale: of shape (n,). 1 when loaded; what trains has columns of length √d.
        plain: the original embedding, whose weight is this one's, too.
        plain_tokenizer: the tokenizer without the tokens.
        tokens: how many vectors each token has, by token, by adapter.
    """

    hra_u_tokens: nn.Parameter
    scale: Tensor

    def __init__(self, plain: nn.Embedding, plain_tokenizer: Any, tokens: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__(*plain.weight.shape, padding_idx=plain.padding_idx, _weight=plain.weight)
        self.weight = plain.weight
        self.__dict__["plain"] = plain  # no sub-module: its weight is here already
        self.plain_tokenizer = plain_tokenizer
        self.tokens = {name: {token: len(each) for token, each in of_one.items()} for name, of_one in tokens.items()}
        vectors = torch.cat([each for of_one in tokens.values() for each in of_one.values()])
        columns = vectors.detach().to(plain.weight.device, torch.float32).T.contiguous()
        self.hra_u_tokens = nn.Parameter(columns, requires_grad=False)
        self.register_buffer("scale", columns.new_ones(columns.shape[1]), persistent=False)

    def vectors(self) -> Tensor:
        """Return what stands for the tokens, of shape (n, d), in float32 unless the model was cast."""
        return self.hra_u_tokens.T * self.scale[:, None]

    def forward(self, input: Tensor) -> Tensor:
        """Look up token ids of any shape (…); returns (…, d)."""
        known = self.num_embeddings
        ordinary = super().forward(input.clamp(max=known - 1))
        learned = embedding((input - known).clamp(min=0), self.vectors()).to(ordinary.dtype)
        return torch.where((input < known).unsqueeze(-1), ordinary, learned)

    def of_adapters(self) -> dict[str, dict[str, Tensor]]:
        """Return the vectors of each token, by adapter."""
        left = iter(self.vectors().detach().split([n for of_one in self.tokens.values() for n in of_one.values()]))
        return {name: {token: next(left) for token in of_one} for name, of_one in self.tokens.items()}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}hra_u_tokens")


def token_embeddings(pipe: Any) -> dict[str, TokenEmbedding]:
    """Return the embeddings of a pipeline's text encoders that know learned tokens, by the encoder's name."""
    found = {name: _base(each).get_input_embeddings() for name, each in models(pipe).items() if _reads(name)}
    return {name: each for name, each in found.items() if isinstance(each, TokenEmbedding)}


def tokens_of(pipe: Any, adapter_name: str) -> Tokens:
    """Return the tokens that came into a pipeline with an adapter."""
    all_of = {name: each.of_adapters() for name, each in token_embeddings(pipe).items()}
    return {name: of_adapters[adapter_name] for name, of_adapters in all_of.items() if adapter_name in of_adapters}


def set_tokens(pipe: Any, adapter_name: str, tokens: Tokens) -> None:
    """Let an adapter's tokens be these, and no others; without any left, everything is the object it was at first.

    Raises:
        AdapterFileError: the pipeline cannot know such tokens; it is unchanged.
        ConfigError: another adapter has a token of that name; the pipeline is unchanged.
    """
    present = token_embeddings(pipe)
    wanted: dict[str, dict[str, Mapping[str, Tensor]]] = {
        name: {adapter: each for adapter, each in extended.of_adapters().items() if adapter != adapter_name}
        for name, extended in present.items()
    }
    for name, of_one in tokens.items():
        _check(pipe, name, of_one, wanted.setdefault(name, {}))
        wanted[name][adapter_name] = of_one
    for name, of_adapters in wanted.items():
        model, tokenizer = _base(getattr(pipe, name)), tokenizer_of(pipe, name)
        extended = present.get(name)
        embedding, plain = (
            (extended.plain, extended.plain_tokenizer) if extended else (model.get_input_embeddings(), tokenizer)
        )
        if of_adapters:
            embedding = TokenEmbedding(embedding, plain, of_adapters)
            tokenizer = _extended(plain, embedding.tokens)
        else:
            tokenizer = plain
        model.set_input_embeddings(embedding)
        setattr(pipe, tokenizer_name(name), tokenizer)
    _guard_numbers(pipe)


def remove_tokens(pipe: Any, adapter_name: str | None = None) -> None:
    """Take the tokens of one adapter, or of all, out of a pipeline."""
    for name in {name for each in token_embeddings(pipe).values() for name in each.tokens}:
        if adapter_name in (None, name):
            set_tokens(pipe, name, {})


def fold_tokens(pipe: Any) -> None:
    """Put the tokens into the embeddings themselves, as more rows of the same table, for whoever knows no tokens."""
    for name, extended in token_embeddings(pipe).items():
        model = _base(getattr(pipe, name))
        tokenizer = tokenizer_of(pipe, name)
        vectors = extended.vectors().detach()
        model.set_input_embeddings(extended.plain)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[extended.num_embeddings :] = vectors
        del tokenizer.save_pretrained  # with the tokens
    _guard_numbers(pipe)


def _guard_numbers(pipe: Any) -> None:
    """Refuse diffusers' textual inversion as long as there are tokens, whose numbers follow those of the embeddings."""
    words = sorted({word for each in token_embeddings(pipe).values() for word in chain(*each.tokens.values())})

    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigError(
            f"The pipeline knows {', '.join(words)} from HRA adapters, whose numbers come after those of textual "
            "inversion: load or unload that before load_hra_weights, or after unload_hra_weights."
        )

    for name in ("load_textual_inversion", "unload_textual_inversion"):
        if words:
            setattr(pipe, name, refuse)
        else:
            pipe.__dict__.pop(name, None)


def _extended(plain: Any, tokens: Mapping[str, Mapping[str, int]]) -> Any:
    """Return a copy of a tokenizer with some tokens; saved, it is the original."""
    tokenizer = deepcopy(plain)
    for of_one in tokens.values():
        for token, count in of_one.items():
            tokenizer.add_tokens([token, *(f"{token}_{number}" for number in range(1, count))])
    tokenizer.save_pretrained = plain.save_pretrained
    return tokenizer


def _check(pipe: Any, name: str, of_one: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse tokens that a text encoder of a pipeline cannot know."""
    if getattr(pipe, name, None) is None or not hasattr(pipe, "maybe_convert_prompt"):
        raise AdapterFileError(
            f"The adapter has learned tokens for {name}, which the {type(pipe).__name__} does not have, or has no "
            "textual inversion for."
        )
    present = _base(getattr(pipe, name)).get_input_embeddings()
    known = getattr(present, "plain_tokenizer", tokenizer_of(pipe, name)).get_vocab()
    width = present.weight.shape[1]
    for token, vectors in of_one.items():
        holder = next((adapter for adapter, each in others.items() if token in each), None)
        if holder is not None:
            raise ConfigError(f"The adapter {holder!r} has a token {token} of its own: use one at a time.")
        if token in known:
            raise AdapterFileError(f"The token {token} is a word that the pipeline's {name} knows already.")
        if vectors.shape[1] != width:
            raise AdapterFileError(
                f"The token {token} is {vectors.shape[1]} wide, but the pipeline's {name} works with {width}: load "
                "the adapter into the kind of model it was trained on."
            )


def _base(model: nn.Module) -> Any:
    """Return a text encoder without what was wrapped around it."""
    model = getattr(model, "_orig_mod", model)
    return model.model if isinstance(model, HRAModel) else model


def _reads(name: str) -> bool:
    return name.startswith("text_encoder")
