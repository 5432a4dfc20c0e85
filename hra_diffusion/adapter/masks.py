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
    """A mask over the rows of inputs of any size, the same for all images of a batch or one for each.

    Attributes:
        version: a number that changes with the mask.
    """

    version: int

    def tokens(self, count: int, device: torch.device) -> Tensor:
        """Return whether each of `count` tokens is inside, of shape (count, 1) or (images, count, 1)."""
        ...

    def pixels(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return whether each pixel is inside, of shape (height, width) or (images, 1, height, width)."""
        ...


def grid_of_tokens(count: int, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of an image's tokens.

    Args:
        count: number of tokens.
        height: height of the image, or of a mask of its proportions.
        width: its width.

    Raises:
        ConfigError: no image of these proportions has so many tokens.
    """
    rows = max(1, round((count * height / width) ** 0.5))
    columns = max(1, round(rows * width / height))
    if rows * columns != count:
        raise ConfigError(
            f"A mask is {width} × {height}, and a layer got {count} tokens, which no image of these proportions has: "
            "give a mask of the image's size."
        )
    return rows, columns


class TokenMask:
    """A mask over the tokens of a text.

    Args:
        inside: whether each token is inside, of shape (tokens,).

    Attributes:
        inside: the same.
    """

    def __init__(self, inside: Tensor) -> None:
        self.inside = inside
        self.version = 0
        self._moved: dict[torch.device, Tensor] = {}

    def tokens(self, count: int, device: torch.device) -> Tensor:
        """Return whether each of `count` tokens is inside, of shape (count, 1).

        Raises:
            ConfigError: the text has another number of tokens.
        """
        if count != len(self.inside):
            raise ConfigError(
                f"The prompt has {len(self.inside)} tokens, and a layer got {count}: adapters bound to tokens need "
                "prompts without weights, of one text encoder's length."
            )
        if device not in self._moved:
            self._moved[device] = self.inside.to(device)[:, None]
        return self._moved[device]

    def pixels(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return False for each pixel: a text has none."""
        return torch.zeros(height, width, dtype=torch.bool, device=device)


class ImageMask:
    """A mask over an image, for its tokens and pixels at any resolution: inside where more than half of one is.

    Args:
        mask: values from 0 to 1, of shape (height, width).
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.detach().float().cpu()
        self.version = 0
        self._resized: dict[tuple[int, int, torch.device], Tensor] = {}

    def tokens(self, count: int, device: torch.device) -> Tensor:
        """Return whether each of `count` tokens is inside, of shape (count, 1).

        Raises:
            ConfigError: no image of the mask's proportions has so many tokens.
        """
        height, width = self._mask.shape
        return self.pixels(*grid_of_tokens(count, height, width), device).flatten()[:, None]

    def pixels(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return whether each pixel is inside, of shape (height, width)."""
        key = height, width, device
        if key not in self._resized:
            with torch.inference_mode(False):  # a gradient may need it
                inside = interpolate(self._mask[None, None], (height, width), mode="area")[0, 0] > 0.5  # not on MPS
                self._resized[key] = inside.to(device)
        return self._resized[key]


class MaskedRows:
    """The adapters of a layer with their masks: a counterpart of `adapter.rows.Rows`.

    Args:
        mixtures: mixtures of adapters; where masks overlap, their product is active.
        masks: the mask of each.
    """

    def __init__(self, mixtures: Sequence[Mixture], masks: Sequence[Mask]) -> None:
        self.mixtures = tuple(mixtures)
        self._masks = tuple(masks)
        self._regions: dict[tuple[int, int, torch.device], list[tuple[Mixture, Tensor]]] = {}
        self._versions = [mask.version for mask in self._masks]

    def replace(self, x: Tensor, call: Call, _: FactorsOf | None = None) -> Tensor:
        """Return x (batch, tokens, d) with the function's results for each mixture inside of its mask."""
        if x.dim() < 3:
            return x
        for mixture, mask in zip(reversed(self.mixtures), reversed(self._masks), strict=True):
            inside = _for_batch(mask.tokens(x.shape[-2], x.device), x, 3)
            x = torch.where(inside, call(x, mixture), x)
        return x

    def add_change(self, output: Tensor, x: Tensor, call: Callable[[Tensor, Mixture], Tensor | None]) -> Tensor:
        """Add the function's results for x to an output (batch, channels, height, width), inside of the masks."""
        height, width = output.shape[-2:]
        for mixture, inside in self._disjoint_regions(height, width, output.device):
            change = call(x, mixture)
            if change is not None:
                inside = _for_batch(inside, output, 4)
                output = torch.where(inside, output + change.to(output.dtype), output)
        return output

    def _disjoint_regions(self, height: int, width: int, device: torch.device) -> list[tuple[Mixture, Tensor]]:
        """Return the mixtures of an image's pixels with their regions: the product of all masks that hold a pixel."""
        key, versions = (height, width, device), [mask.version for mask in self._masks]
        if versions != self._versions:
            self._regions, self._versions = {}, versions
        if key not in self._regions:
            cpu = torch.device("cpu")
            code = torch.zeros(height, width, dtype=torch.int64)
            for number, mask in enumerate(self._masks):
                code = code + (mask.pixels(height, width, cpu).long() << number)
            self._regions[key] = [
                (tuple(blend for i, mixture in enumerate(self.mixtures) if value >> i & 1 for blend in mixture), inside)
                for value in code.unique().tolist()
                if value
                for inside in [(code == value).to(device)]
            ]
        return self._regions[key]


def _for_batch(inside: Tensor, x: Tensor, dims: int) -> Tensor:
    """Repeat the masks of the images of a batch for rows of x, whose halves of guidance have the same images."""
    if inside.dim() < dims or len(inside) == 1 or len(x) % len(inside):
        return inside
    return inside.repeat(len(x) // len(inside), *(1,) * (dims - 1))
