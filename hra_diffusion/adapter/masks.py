"""Masks over the rows of a layer's input: each adapter is active only in the rows inside of its mask.

A layer reads its input in rows, y = W (x − U s). With a mask m of 0 and 1 for each row it is

    y = W (x − m ⊙ U s)

so rows outside of all masks give the base model's output to the bit. Rows are tokens of a text or of an image; the
pixels of a convolution's output are the rows of its unfolded input. Inputs without a dimension of tokens, such as those
of a time embedding, belong to no row of a mask: they stay as they are.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hra_diffusion.adapter.mixture import Mixture
from hra_diffusion.adapter.rows import Call, FactorsOf
from hra_diffusion.errors import ConfigError


class Mask(Protocol):
    """A mask over the rows of inputs of any size."""

    def tokens(self, count: int, device: torch.device) -> Tensor:
        """Return whether each of `count` tokens is inside, of shape (count, 1)."""
        ...

    def pixels(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return whether each pixel is inside, of shape (height, width)."""
        ...


class TokenMask:
    """A mask over the tokens of a text.

    Args:
        inside: whether each token is inside, of shape (tokens,).
    """

    def __init__(self, inside: Tensor) -> None:
        self._inside = inside

    def tokens(self, count: int, device: torch.device) -> Tensor:
        """Return whether each of `count` tokens is inside, of shape (count, 1).

        Raises:
            ConfigError: the text has another number of tokens.
        """
        if count != len(self._inside):
            raise ConfigError(
                f"The prompt has {len(self._inside)} tokens, and a layer got {count}: adapters bound to tokens need "
                "prompts without weights, of one text encoder's length."
            )
        return self._inside.to(device)[:, None]

    def pixels(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return False for each pixel: a text has none."""
        return torch.zeros(height, width, dtype=torch.bool, device=device)


class ImageMask:
    """A mask over an image, for its tokens and pixels at any resolution: inside where more than half of one is.

    Args:
        mask: values from 0 to 1, of shape (height, width).
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.float()

    def tokens(self, count: int, device: torch.device) -> Tensor:
        """Return whether each of `count` tokens is inside, of shape (count, 1).

        Raises:
            ConfigError: no image of the mask's proportions has so many tokens.
        """
        height, width = self._mask.shape
        rows = max(1, round((count * height / width) ** 0.5))
        columns = max(1, round(rows * width / height))
        if rows * columns != count:
            raise ConfigError(
                f"A mask is {width} × {height}, and a layer got {count} tokens, which no image of these proportions "
                "has: give a mask of the image's size."
            )
        return self.pixels(rows, columns, device).flatten()[:, None]

    def pixels(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return whether each pixel is inside, of shape (height, width)."""
        return interpolate(self._mask.to(device)[None, None], (height, width), mode="area")[0, 0] > 0.5


class MaskedRows:
    """The adapters of a layer with their masks: a counterpart of `adapter.rows.Rows`.

    Args:
        mixtures: mixtures of adapters; where masks overlap, their product is active.
        masks: the mask of each.
    """

    def __init__(self, mixtures: Sequence[Mixture], masks: Sequence[Mask]) -> None:
        self.mixtures = tuple(mixtures)
        self._masks = tuple(masks)

    def replace(self, x: Tensor, call: Call, _: FactorsOf | None = None) -> Tensor:
        """Return x (batch, tokens, d) with the function's results for each mixture inside of its mask."""
        if x.dim() < 3:
            return x
        for mixture, mask in zip(reversed(self.mixtures), reversed(self._masks), strict=True):
            x = torch.where(mask.tokens(x.shape[-2], x.device), call(x, mixture), x)
        return x

    def add_change(self, output: Tensor, x: Tensor, call: Callable[[Tensor, Mixture], Tensor | None]) -> Tensor:
        """Add the function's results for x to an output (batch, channels, height, width), inside of the masks."""
        for mixture, mask in zip(self.mixtures, self._masks, strict=True):
            change = call(x, mixture)
            if change is not None:
                height, width = output.shape[-2:]
                inside = mask.pixels(height, width, output.device)
                output = torch.where(inside, output + change.to(output.dtype), output)
        return output
