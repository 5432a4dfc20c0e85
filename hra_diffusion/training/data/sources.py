"""Images and captions → latents and conditions for the denoiser, computed once before the first step."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hra_diffusion.formats.images import parse_color
from hra_diffusion.pipelines.clip_skip import default_clip_skip
from hra_diffusion.progress import tracked
from hra_diffusion.training.config import DataConfig, ImageConfig
from hra_diffusion.training.data.batches import ConditioningDropout, Source
from hra_diffusion.training.data.buckets import Size
from hra_diffusion.training.data.cache import Cache, Tensors
from hra_diffusion.training.data.caption_orders import caption_orders
from hra_diffusion.training.data.crops import Crop, augmented_crops, cover, covering_size, to_tensor
from hra_diffusion.training.data.latents import Latent, encode
from hra_diffusion.training.data.masks import read_mask
from hra_diffusion.training.data.subjects import Example
from hra_diffusion.training.devices.offloading import on_device
from hra_diffusion.training.families import Conditioning, Family, PromptPart

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceEncoder:
    """Encodes images and captions with the model of a run."""

    family: Family
    device: torch.device
    """The models that encode are on the device while they do, and on the CPU afterwards."""
    data: ImageConfig
    text_encoder_trains: bool
    seed: int
    cache: Cache
    _fingerprints: dict[nn.Module, str] = field(default_factory=dict)

    def encode(
        self,
        name: str,
        examples: Iterable[tuple[Example, Size]],
        weight: float = 1.0,
        prior_prediction: bool = False,
        validate_every: int | None = None,
    ) -> Source:
        """Encode examples, each at its size; an image may occur in several sizes.

        The captions of training images are shuffled and dropped by the settings.

        Args:
            name: the source's name in the log and in its random streams.
            examples: images with their captions, each with the width and height of its crops.
            weight: the source's weight in the loss.
            prior_prediction: whether the base model's prediction is the target.
            validate_every: steps between measurements of the loss on held-out images; None for training images.
        """
        pairs = list(examples)
        with on_device([self.family.pipe.vae], self.device):
            latents = [self._latent(*pair) for pair in tracked(pairs, "encoding images")]
        data = self.data if isinstance(self.data, DataConfig) and not validate_every else DataConfig()
        orders = {example.caption: caption_orders(example.caption, data, self.seed) for example, _ in pairs}
        captions = list(dict.fromkeys(text for texts in orders.values() for text in texts))
        conditions = self.encode_captions(captions)
        caption_index = {caption: index for index, caption in enumerate(captions)}
        order = [index for index, (example, _) in enumerate(pairs) for _ in range(example.repeats)]
        rows = [[caption_index[text] for text in orders[pairs[index][0].caption]] for index in order]
        is_shuffled = any(len(texts) > 1 for texts in orders.values())
        stacked = {key: torch.cat([condition[key] for condition in conditions]) for key in conditions[0]}
        first_rows = [first for first, *_ in rows]
        values_by_row = stacked if is_shuffled else {key: values[first_rows] for key, values in stacked.items()}
        return Source(
            name=name,
            latents=[latents[index] for index in order],
            conditions=values_by_row,
            condition_rows=rows if is_shuffled else (),
            dropouts=self._caption_dropout(data.caption_dropout_rate),
            crop_conditions={"sizes": [self._time_ids(*pairs[index]) for index in order]},
            weight=weight,
            prior_prediction=prior_prediction,
            validate_every=validate_every,
        )

    def _caption_dropout(self, share: float) -> tuple[ConditioningDropout, ...]:
        if not share:
            return ()
        (no_prompt,) = self.encode_captions([""])
        return (ConditioningDropout(share=share, values=no_prompt),)

    def encode_captions(self, captions: Sequence[str]) -> list[Conditioning]:
        """Encode captions, by one part of the text encoders after another."""
        conditions: list[Conditioning] = [{} for _ in captions]
        for part in self.family.prompt_parts(self.text_encoder_trains):
            with on_device(part.text_encoders, self.device):
                for index, caption in enumerate(tracked(captions, "encoding captions")):
                    conditions[index] |= self._condition(part, caption)
        return conditions

    def _latent(self, example: Example, size: Size) -> Latent:
        crops, background = self._crops(example, size), parse_color(self.data.background_color)

        def encode_crops() -> Tensors:
            covering = cover(example.photo.decode(background), size)
            example.photo.check_unchanged()
            (latent,) = encode(self.family.latent_space, [[to_tensor(crop.apply(covering, size)) for crop in crops]])
            return {"mean": latent.mean, "deviation": latent.std}

        key = (self._fingerprint(self.family.pipe.vae), example.photo.digest, size, crops, background)
        tensors = self.cache.fetch("latents", key, encode_crops)
        latent = Latent(mean=tensors["mean"], std=tensors["deviation"])  # the name in the files of version 0.1
        return replace(latent, weight=self._weight(example, size, latent)) if example.mask else latent

    def _weight(self, example: Example, size: Size, latent: Latent) -> Tensor:
        """Return the loss weights of the image's mask: shape (crops, 1, h, w)."""
        assert example.mask and isinstance(self.data, DataConfig)
        covering = cover(read_mask(example.photo, example.mask), size)
        height, width = latent.mean.shape[2:]
        crops = [crop.cut(covering, size) for crop in self._crops(example, size)]
        masks = [np.asarray(crop.resize((width, height), Image.Resampling.BOX), np.float32) for crop in crops]
        minimum = self.data.unmasked_weight
        if minimum == 0 and not all(mask.any() for mask in masks):
            logger.warning("The mask of %s is black in some of its crops, which have no weight.", example.photo.path)
        return torch.from_numpy(np.stack(masks)[:, None]) / 255 * (1 - minimum) + minimum

    def _time_ids(self, example: Example, size: Size) -> Tensor:
        """Return SDXL's size conditioning of each crop: shape (crops, 6)."""
        original = example.photo.size
        covering = covering_size(original, size)
        return torch.tensor([crop.time_ids(original, covering, size) for crop in self._crops(example, size)]).float()

    def _crops(self, example: Example, size: Size) -> list[Crop]:
        return augmented_crops(example.photo.size, size, self.data, self.seed, example.photo.digest)

    def _condition(self, part: PromptPart, caption: str) -> Conditioning:
        if not part.text_encoders:
            return part.encode([caption])
        tokens = [tokenizer(caption, verbose=False).input_ids for tokenizer in part.tokenizers]
        fingerprints = [self._fingerprint(text_encoder) for text_encoder in part.text_encoders]
        clip_skip = default_clip_skip(self.family.pipe)
        key = (fingerprints, tokens) if clip_skip is None else (fingerprints, tokens, clip_skip)
        key = (*key, part.template) if part.template else key
        return self.cache.fetch("prompts", key, lambda: part.encode([caption]))

    def _fingerprint(self, model: nn.Module) -> str:
        """Digest a model, once; see :meth:`Cache.fingerprint`."""
        if model not in self._fingerprints:
            self._fingerprints[model] = self.cache.fingerprint(model)
        return self._fingerprints[model]
