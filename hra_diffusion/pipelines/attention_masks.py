"""Regions of adapters by cross-attention: the pixels that attend to the tokens of an adapter's words.

Each pass of the UNet gives a map for each adapter: the attention weights of the pixels to the adapter's tokens, as the
mean of all heads of all cross-attention layers. The maps of all passes so far are added and divided by their maximum. A
pixel is in the region of the adapter whose value is largest there, if it is above a threshold. So the first pass has no
regions, and later ones have those of the image so far. Recording changes no number of a pass.

The maps are those of Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", ICLR 2023, arXiv
2208.01626.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hra_diffusion.adapter.masks import Mask, grid_of_tokens

_LEAST: Final = 0.4
"""The least value of a pixel inside, as a share of the largest."""


class AttentionMasks:
    """The regions of adapters in the images of one call.

    Args:
        tokens: whether each token of the prompt, (tokens,), is one of an adapter's words, by adapter.
        images: number of images in the batch.

    Attributes:
        masks: the mask of each adapter, for `adapter.masks.MaskedRows`.
    """

    def __init__(self, tokens: Mapping[str, Tensor], images: int) -> None:
        inside = torch.stack(list(tokens.values())).float()
        self._weights = inside / inside.sum(dim=1, keepdim=True)
        self._images, self._shape = images, (1, 1)
        self._queries: dict[nn.Module, Tensor] = {}
        self._maps: list[Tensor] = []
        self._sum: Tensor | None = None
        self.masks = {name: AttentionMask() for name in tokens}

    def record(self, unet: nn.Module) -> ExitStack:
        """Record the maps of a UNet's passes; closing the result ends it."""
        with ExitStack() as undo:
            undo.callback(unet.register_forward_pre_hook(self._before_pass, with_kwargs=True).remove)
            for name, attention in unet.named_modules():
                if name.endswith("attn2") and hasattr(attention, "heads"):
                    query, key = attention.get_submodule("to_q"), attention.get_submodule("to_k")
                    undo.callback(query.register_forward_hook(self._keep_query(attention)).remove)
                    undo.callback(key.register_forward_hook(self._add_map(attention)).remove)
            return undo.pop_all()

    def _keep_query(self, attention: nn.Module) -> Callable[[Any, Any, Tensor], None]:
        def keep_query(_: Any, __: Any, query: Tensor) -> None:
            self._queries[attention] = query.detach()

        return keep_query

    def _add_map(self, attention: Any) -> Callable[[Any, Any, Tensor], None]:
        @torch.no_grad()
        def add_map(_: Any, __: Any, key: Tensor) -> None:
            # the halves of guidance are the unconditional and the conditional one
            query, keys = (
                tensor[-self._images :].float().unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                for tensor in (self._queries.pop(attention), key.detach())
            )
            weights = (query @ keys.mT * attention.scale).softmax(dim=-1).mean(dim=1)
            maps = (weights @ self._weights.to(weights.device).mT).mT  # (images, adapters, pixels)
            image = maps.unflatten(-1, grid_of_tokens(maps.shape[-1], *self._shape))
            self._maps.append(interpolate(image, self._shape, mode="bilinear"))

        return add_map

    @torch.no_grad()
    def _before_pass(self, _: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Make the regions of the next pass."""
        sample: Tensor = args[0] if args else kwargs["sample"]
        self._shape = (sample.shape[-2], sample.shape[-1])
        self._queries.clear()
        if self._maps:
            latest = torch.stack([image.to(self._maps[0].device) for image in self._maps]).mean(dim=0)
            self._maps.clear()
            self._sum = latest if self._sum is None else self._sum + latest
            relative = self._sum / self._sum.amax(dim=(-2, -1), keepdim=True)
            inside = (relative > _LEAST) & (relative == relative.amax(dim=1, keepdim=True))
            for number, mask in enumerate(self.masks.values()):
                mask.update(inside[:, number])


class AttentionMask(Mask):
    """A mask of each image of a batch, which changes from pass to pass; nothing is inside before the first.

    Attributes:
        version: number of changes.
        inside: the values (images, height, width).
    """

    def __init__(self) -> None:
        self.version = 0
        self.inside: Tensor | None = None

    def update(self, inside: Tensor) -> None:
        """Replace the values by others (images, height, width)."""
        self.inside, self.version = inside, self.version + 1

    def tokens(self, count: int, device: torch.device) -> Tensor:
        """Return whether each of `count` tokens is inside, of shape (images, count, 1)."""
        shape = (1, count) if self.inside is None else grid_of_tokens(count, *self.inside.shape[1:])
        return self._resized(shape, device).flatten(1)[..., None]

    def pixels(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return whether each pixel is inside, of shape (images, 1, height, width)."""
        return self._resized((height, width), device)[:, None]

    def _resized(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        if self.inside is None:
            return torch.zeros(1, *shape, dtype=torch.bool, device=device)
        return interpolate(self.inside[:, None].float(), shape, mode="bilinear")[:, 0].to(device) > 0.5
