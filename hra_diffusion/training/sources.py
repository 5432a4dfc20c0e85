"""Pictures and captions → what the denoiser takes: latents and conditions, computed once before the first step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hra_diffusion.training.batches import Source
from hra_diffusion.training.buckets import Size
from hra_diffusion.training.cache import Latent, encode
from hra_diffusion.training.config import DataConfig
from hra_diffusion.training.families import Family
from hra_diffusion.training.masks import read_mask
from hra_diffusion.training.pictures import parse_colour
from hra_diffusion.training.subjects import Example
from hra_diffusion.training.views import View, cover, covering_size, to_tensor, views


@dataclass(frozen=True, kw_only=True)
class SourceMaker:
    """Encodes the pictures of a run with its model."""

    family: Family
    data: DataConfig
    text_encoder_trains: bool
    seed: int

    def make(self, name: str, examples: Iterable[tuple[Example, Size]], weight: float = 1.0) -> Source:
        """Make a source of pictures, each cropped to a size; a picture may occur in several sizes."""
        pairs = list(examples)
        plain = encode(self.family.pipe.vae, (self._views(example, size) for example, size in pairs))
        latents = [self._weighted(latent, *pair) for latent, pair in zip(plain, pairs, strict=True)]
        captions = list(dict.fromkeys(example.caption for example, _ in pairs))
        conditions = self.family.condition(captions, self.text_encoder_trains)
        order = [at for at, (example, _) in enumerate(pairs) for _ in range(example.repeats)]
        told = [captions.index(pairs[at][0].caption) for at in order]
        return Source(
            name=name,
            latents=[latents[at] for at in order],
            conditions={name: condition[told] for name, condition in conditions.items()},
            of_views={"sizes": [self._sizes(*pairs[at]) for at in order]},
            weight=weight,
        )

    def _views(self, example: Example, size: Size) -> list[Tensor]:
        covering = cover(example.photo.read(parse_colour(self.data.background_color)), size)
        return [to_tensor(view.picture(covering, size)) for view in self._shown(covering.size, example, size)]

    def _sizes(self, example: Example, size: Size) -> Tensor:
        """What became of the picture's size in each of its views: shape (V, 6)."""
        covering = covering_size(example.photo.size, size)
        shown = self._shown(covering, example, size)
        return torch.tensor([view.sizes(example.photo.size, covering, size) for view in shown]).float()

    def _weighted(self, latent: Latent, example: Example, size: Size) -> Latent:
        """Add the weights of the picture's mask, if it has one."""
        if example.mask is None:
            return latent
        covering = cover(read_mask(example.photo, example.mask), size)
        height, width = latent.mean.shape[2:]
        masks = [
            np.asarray(view.crop(covering, size).resize((width, height), Image.Resampling.BOX), np.float32) / 255
            for view in self._shown(covering.size, example, size)
        ]
        rest = self.data.unmasked_weight
        return replace(latent, weight=torch.from_numpy(np.stack(masks)[:, None]) * (1 - rest) + rest)

    def _shown(self, covering: Size, example: Example, size: Size) -> Sequence[View]:
        return views(covering, size, self.data, self.seed, example.photo.digest)
