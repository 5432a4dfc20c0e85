"""Learned tokens in a pipeline: words of prompts with the embeddings of an adapter (arXiv 2208.01618).

The original embeddings are never changed: a token's id is larger than theirs, and is looked up in a table beside them.
diffusers' pipelines spell a token of several vectors as `<sks> <sks>_1 …` before the lookup.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.tokens import Tokens
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.components import set_tokenizer, text_encoders, tokenizer_of, uncompiled
from hra_diffusion.pipelines.protocol import Pipeline


class TokenEmbedding(nn.Embedding):
    """An embedding with additional tokens; its saved state is that of the original embedding.

    Attributes:
        hra_u_tokens: the vectors as columns (d, n), each divided by its ``scale``.
        scale: of shape (n,): 1 when loaded; for training, the columns have length √d.
        plain: the original embedding, which shares its weight.
        plain_tokenizer: the tokenizer without the tokens.
        tokens: number of vectors by token, by adapter.
    """

    hra_u_tokens: nn.Parameter
    scale: Tensor
    plain: nn.Embedding
    plain_tokenizer: Any
    tokens: dict[str, dict[str, int]]

    def __init__(self, plain: nn.Embedding, plain_tokenizer: Any, tokens: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__(*plain.weight.shape, padding_idx=plain.padding_idx, _weight=plain.weight)
        self.weight = plain.weight
        self.__dict__["plain"] = plain  # no sub-module: its weight is registered already
        self.plain_tokenizer = plain_tokenizer
        self.tokens = {name: {token: len(rows) for token, rows in table.items()} for name, table in tokens.items()}
        vectors = torch.cat([vectors for table in tokens.values() for vectors in table.values()])
        columns = vectors.detach().to(plain.weight.device, torch.float32).T.contiguous()
        self.hra_u_tokens = nn.Parameter(columns, requires_grad=False)
        self.register_buffer("scale", columns.new_ones(columns.shape[1]), persistent=False)

    def vectors(self) -> Tensor:
        """Return the vectors of the tokens, of shape (n, d), in float32 unless the model was cast."""
        return self.hra_u_tokens.T * self.scale[:, None]

    def forward(self, input: Tensor) -> Tensor:
        """Look up token ids of any shape (…); returns (…, d)."""
        known = self.num_embeddings
        ordinary = super().forward(input.clamp(max=known - 1))
        learned = embedding((input - known).clamp(min=0), self.vectors()).to(ordinary.dtype)
        return torch.where((input < known).unsqueeze(-1), ordinary, learned)

    def by_adapter(self) -> dict[str, dict[str, Tensor]]:
        """Return the vectors of every token, by adapter."""
        sizes = [count for counts in self.tokens.values() for count in counts.values()]
        vectors = iter(self.vectors().detach().split(sizes))
        return {name: {token: next(vectors) for token in counts} for name, counts in self.tokens.items()}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}hra_u_tokens")


def token_embeddings(pipe: Pipeline) -> dict[str, TokenEmbedding]:
    """Return the embeddings with learned tokens of a pipeline, by the text encoder's name."""
    encoders = {name: _base(model) for name, model in text_encoders(pipe).items()}
    embeddings = {name: model.get_input_embeddings() for name, model in encoders.items()}
    return {name: embedding for name, embedding in embeddings.items() if isinstance(embedding, TokenEmbedding)}


def tokens_of(pipe: Pipeline, adapter_name: str) -> Tokens:
    """Return an adapter's learned tokens in a pipeline."""
    tables = {name: extended.by_adapter() for name, extended in token_embeddings(pipe).items()}
    return {name: adapters[adapter_name] for name, adapters in tables.items() if adapter_name in adapters}


def set_tokens(pipe: Pipeline, adapter_name: str, tokens: Tokens) -> None:
    """Replace an adapter's tokens in a pipeline; without any tokens, embedding and tokenizer are the original objects.

    Raises:
        AdapterFileError: the pipeline cannot use such tokens; it is unchanged.
        ConfigError: another adapter has a token of that name; the pipeline is unchanged.
    """
    present = token_embeddings(pipe)
    wanted: dict[str, dict[str, Mapping[str, Tensor]]] = {
        name: {adapter: table for adapter, table in extended.by_adapter().items() if adapter != adapter_name}
        for name, extended in present.items()
    }
    for name, table in tokens.items():
        _check(pipe, name, table, wanted.setdefault(name, {}))
        wanted[name][adapter_name] = table
    for name, adapters in wanted.items():
        model, tokenizer = _base(getattr(pipe, name)), tokenizer_of(pipe, name)
        extended = present.get(name)
        embedding, plain = (
            (extended.plain, extended.plain_tokenizer) if extended else (model.get_input_embeddings(), tokenizer)
        )
        if adapters:
            embedding = TokenEmbedding(embedding, plain, adapters)
            tokenizer = _extended(plain, embedding.tokens)
        else:
            tokenizer = plain
        model.set_input_embeddings(embedding)
        set_tokenizer(pipe, name, tokenizer)
    _guard_token_ids(pipe)


def remove_tokens(pipe: Pipeline, adapter_name: str | None = None) -> None:
    """Remove the tokens of one adapter, or of all, from a pipeline."""
    for name in {name for extended in token_embeddings(pipe).values() for name in extended.tokens}:
        if adapter_name in (None, name):
            set_tokens(pipe, name, {})


def fold_tokens(pipe: Pipeline) -> None:
    """Append the tokens to the embeddings themselves, as more rows of the table, for tools without learned tokens."""
    for name, extended in token_embeddings(pipe).items():
        model = _base(getattr(pipe, name))
        tokenizer = tokenizer_of(pipe, name)
        vectors = extended.vectors().detach()
        model.set_input_embeddings(extended.plain)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[extended.num_embeddings :] = vectors
        del tokenizer.save_pretrained  # with the tokens
    _guard_token_ids(pipe)


def _guard_token_ids(pipe: Pipeline) -> None:
    """Refuse diffusers' textual inversion while a pipeline has tokens: it would change their ids."""
    words = sorted({word for extended in token_embeddings(pipe).values() for word in chain(*extended.tokens.values())})

    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigError(
            f"The pipeline has {', '.join(words)} from HRA adapters, whose token ids come after those of textual "
            "inversion: load or unload textual inversion before load_hra_weights, or after unload_hra_weights."
        )

    for name in ("load_textual_inversion", "unload_textual_inversion"):
        if words:
            setattr(pipe, name, refuse)
        else:
            pipe.__dict__.pop(name, None)


def _extended(plain: Any, tokens: Mapping[str, Mapping[str, int]]) -> Any:
    """Return a copy of a tokenizer with additional tokens; its saved files are those of the original."""
    tokenizer = deepcopy(plain)
    for counts in tokens.values():
        for token, count in counts.items():
            tokenizer.add_tokens([token, *(f"{token}_{number}" for number in range(1, count))])
    tokenizer.save_pretrained = plain.save_pretrained
    return tokenizer


def _check(pipe: Pipeline, name: str, table: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse an adapter's tokens for a text encoder that cannot use them."""
    if getattr(pipe, name, None) is None or not hasattr(pipe, "maybe_convert_prompt"):
        raise AdapterFileError(
            f"The adapter has learned tokens for {name}, but the {type(pipe).__name__} has no {name}, or no textual "
            "inversion."
        )
    present = _base(getattr(pipe, name)).get_input_embeddings()
    known = getattr(present, "plain_tokenizer", tokenizer_of(pipe, name)).get_vocab()
    width = present.weight.shape[1]
    for token, vectors in table.items():
        holder = next((adapter for adapter, tokens in others.items() if token in tokens), None)
        if holder is not None:
            raise ConfigError(f"The adapter {holder!r} has a token {token}, too: load one of them at a time.")
        if token in known:
            raise AdapterFileError(f"The token {token} is a known word of the pipeline's {name} already.")
        if vectors.shape[1] != width:
            raise AdapterFileError(
                f"The token {token} is {vectors.shape[1]} wide, but the pipeline's {name} works with {width}: load "
                "the adapter into the kind of model it was trained on."
            )


def _base(model: nn.Module) -> Any:
    """Return a text encoder without compilation and adapters."""
    model = uncompiled(model)
    return model.model if isinstance(model, HRAModel) else model
