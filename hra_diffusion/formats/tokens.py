"""Learned tokens as files that diffusers' `load_textual_inversion` reads: one a token and text encoder.

tokens/
├── text_encoder/    sks.safetensors: "<sks>", of shape (n, d): n vectors that stand for it one after the other
└── text_encoder_2/  the same, in that encoder's width
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors.torch import save
from torch import Tensor

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import read_tensors

FOLDER: Final = "tokens"
PATTERN: Final = f"{FOLDER}/*/*.safetensors"

Tokens = Mapping[str, Mapping[str, Tensor]]
"""Vectors (n, d) by token, by text encoder."""


def token_files(tokens: Tokens) -> dict[str, bytes]:
    """Return the files that hold some tokens, by their path within an adapter's folder."""
    return {
        f"{FOLDER}/{text_encoder}/{token.strip('<>')}.safetensors": save({token: vectors.contiguous()})
        for text_encoder, of_one in tokens.items()
        for token, vectors in of_one.items()
    }


def read_tokens(folder: Path) -> Tokens:
    """Read the tokens of an adapter's folder; none is what most adapters have.

    Raises:
        AdapterFileError: a file is damaged, or does not hold one token's vectors.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for path in sorted(folder.glob(PATTERN)):
        tensors = read_tensors(path)
        if len(tensors) != 1 or any(tensor.ndim != 2 for tensor in tensors.values()):
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise AdapterFileError(f"{path} should hold one token's vectors, of shape (n, width); found {shapes}.")
        found.setdefault(path.parent.name, {}).update(tensors)
    return found
