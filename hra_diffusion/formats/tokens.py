"""Files of learned tokens, one a token and text encoder, readable by diffusers' `load_textual_inversion`.

tokens/
├── text_encoder/    sks.safetensors: "<sks>", of shape (n, d): its n vectors, in order
└── text_encoder_2/  the same, in that encoder's width
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors.torch import save
from torch import Tensor

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.tensors import check_finite, read_tensors

FOLDER: Final = "tokens"
_MAX: Final = 512
"""Limit of a token's vectors; a prompt of CLIP has 77."""
PATTERN: Final = f"{FOLDER}/*/*.safetensors"

Tokens = Mapping[str, Mapping[str, Tensor]]
"""Vectors (n, d) by token, by text encoder."""


def token_files(tokens: Tokens) -> dict[str, bytes]:
    """Return the files of tokens, by path within an adapter's folder.

    Raises:
        AdapterFileError: a vector is not finite.
    """
    for table in tokens.values():
        check_finite(table, "The learned tokens")
    return {
        f"{FOLDER}/{text_encoder}/{token.strip('<>')}.safetensors": save({token: vectors.contiguous()})
        for text_encoder, table in tokens.items()
        for token, vectors in table.items()
    }


def read_tokens(folder: Path) -> Tokens:
    """Read the tokens of an adapter's folder; most adapters have none.

    Raises:
        AdapterFileError: a file is damaged, or does not hold the vectors of one token.
    """
    tokens: dict[str, dict[str, Tensor]] = {}
    for path in sorted(folder.glob(PATTERN)):
        tensors = read_tensors(path)
        if len(tensors) != 1 or any(tensor.ndim != 2 or not 1 <= len(tensor) <= _MAX for tensor in tensors.values()):
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise AdapterFileError(
                f"{path} should hold one token's vectors, of shape (n, width), n ≤ {_MAX}; found {shapes}."
            )
        tokens.setdefault(path.parent.name, {}).update(tensors)
    return tokens
