"""Images and captions → what the denoiser takes: latents and conditions, computed once before the first step."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hra_diffusion.formats.images import parse_color
from hra_diffusion.training.config import DataConfig, ImageConfig
from hra_diffusion.training.data.batches import Source
from hra_diffusion.training.data.buckets import Size
from hra_diffusion.training.data.cache import Cache, Tensors
from hra_diffusion.training.data.crops import View, cover, covering_size, to_tensor, views
from hra_diffusion.training.data.latents import Latent, encode
from hra_diffusion.training.data.masks import read_mask
from hra_diffusion.training.data.subjects import Example
from hra_diffusion.training.families import Condition, Family

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceMaker:
    """Encodes the images of a run with its model."""

    family: Family
    data: ImageConfig
    text_encoder_trains: bool
    seed: int
    cache: Cache

    def make(
        self, name: str, examples: Iterable[tuple[Example, Size]], weight: float = 1.0, prior_prediction: bool = False
    ) -> Source:
        """Make a source of images, each cropped to a size; an image may occur in several sizes."""
        pairs = list(examples)
        latents = [self._latent(*pair) for pair in pairs]
        captions = list(dict.fromkeys(example.caption for example, _ in pairs))
        conditions = [self._condition(caption) for caption in captions]
        place = {caption: at for at, caption in enumerate(captions)}
        order = [at for at, (example, _) in enumerate(pairs) for _ in range(example.repeats)]
        told = [place[pairs[at][0].caption] for at in order]
        return Source(
            name=name,
            latents=[latents[at] for at in order],
            conditions={key: torch.cat([condition[key] for condition in conditions])[told] for key in conditions[0]},
            of_crops={"sizes": [self._sizes(*pairs[at]) for at in order]},
            weight=weight,
            prior_prediction=prior_prediction,
        )

    def _latent(self, example: Example, size: Size) -> Latent:
        shown, background = self._shown(example, size), parse_color(self.data.background_color)

        def make() -> Tensors:
            covering = cover(example.photo.read(background), size)
            example.photo.check_unchanged()
            (latent,) = encode(self.family.pipe.vae, [[to_tensor(view.image(covering, size)) for view in shown]])
            return {"mean": latent.mean, "deviation": latent.deviation}

        made_from = (self._autoencoder, example.photo.digest, size, shown, background)
        latent = Latent(**self.cache.fetch("latents", made_from, make))
        return replace(latent, weight=self._weight(example, size, latent)) if example.mask else latent

    def _weight(self, example: Example, size: Size, latent: Latent) -> Tensor:
        """Return how much each place of a latent counts, by the image's mask: shape (V, 1, h, w)."""
        assert example.mask and isinstance(self.data, DataConfig)
        covering = cover(read_mask(example.photo, example.mask), size)
        height, width = latent.mean.shape[2:]
        crops = [view.crop(covering, size) for view in self._shown(example, size)]
        masks = [np.asarray(crop.resize((width, height), Image.Resampling.BOX), np.float32) for crop in crops]
        rest = self.data.unmasked_weight
        if rest == 0 and not all(mask.any() for mask in masks):
            logger.warning("Nothing of %s counts in some of its crops: its mask is black there.", example.photo.path)
        return torch.from_numpy(np.stack(masks)[:, None]) / 255 * (1 - rest) + rest

    def _sizes(self, example: Example, size: Size) -> Tensor:
        """What became of the image's size in each of its views: shape (V, 6)."""
        own = example.photo.size
        covering = covering_size(own, size)
        return torch.tensor([view.sizes(own, covering, size) for view in self._shown(example, size)]).float()

    def _shown(self, example: Example, size: Size) -> list[View]:
        return views(example.photo.size, size, self.data, self.seed, example.photo.digest)

    def _condition(self, caption: str) -> Condition:
        if self.text_encoder_trains:
            return self.family.condition([caption], True)
        tokens = [tokenizer(caption, verbose=False).input_ids for tokenizer in self._parts("tokenizer")]
        made_from = (self._text_encoders, tokens)
        return self.cache.fetch("prompts", made_from, lambda: self.family.condition([caption], False))

    @cached_property
    def _autoencoder(self) -> str:
        return self.cache.fingerprint(self.family.pipe.vae)

    @cached_property
    def _text_encoders(self) -> list[str]:
        return [self.cache.fingerprint(text_encoder) for text_encoder in self._parts("text_encoder")]

    def _parts(self, name: str) -> list[Any]:
        """Return the pipeline's components of a kind, such as text_encoder and text_encoder_2."""
        found = sorted((key, part) for key, part in self.family.pipe.components.items() if key.startswith(name))
        return [part for _, part in found if part is not None]
