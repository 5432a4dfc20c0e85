"""The judge: a small CLIP of the emoji world (Radford et al., arXiv 2103.00020), trained on composed scenes alone.

Loss, with unit vectors p of images and t of texts and a learned temperature: cross-entropy over the batch of p·t,
both ways, for whole captions, some of which leave color and pattern out; and for each attribute cross-entropy over the
captions of all its labels ("a cat", "a dog", …), so that the same model answers by prompts what a classification head
would. Some things wear something, so that what tells one individual from another matters to the vectors.
"""

import functools
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from emoji_world import scenes, world
from emoji_world.attributes import truth, vocabulary
from emoji_world.autoencoder import to_tensor
from emoji_world.scenes import Background, SceneRenderer, Spec
from emoji_world.tokenizer import LENGTH
from hra_diffusion.metrics.encoders import pooled
from hra_diffusion.metrics.vocabulary import FILE

BATCH = 96
_WORN_SHARE = 0.25
_UNSAID_SHARE = 0.3  # so that a green tiger is a tiger, too
_WIDTH = 128
_NOWHERE = Background(kind="plain", colors=("white",))


class Scene(NamedTuple):
    """An image, what it shows, and words that are true of it."""

    spec: Spec
    worn: str | None
    caption: str
    image: Image.Image

    @property
    def labels(self) -> dict[str, str | None]:
        """The label of each attribute, None where it has none."""
        return truth(self.spec, self.worn)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained judge: 64 patches of 16 pixels, six layers for images, two for words, 128 channels."""
    layers = {"hidden_size": _WIDTH, "intermediate_size": 4 * _WIDTH, "num_attention_heads": 4}
    text = {
        **layers,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**layers, "num_hidden_layers": 6, "image_size": scenes.SIZE, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=_WIDTH)
    return CLIPModel(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Composer:
    """Composes scenes to train on; what a thing looks like is painted once."""

    def __init__(self, painter: SceneRenderer) -> None:
        self.painter = painter
        self._thing = functools.lru_cache(maxsize=4096)(self._paint)

    def draw(self, rng: np.random.Generator) -> Scene:
        """A random scene; not of a combination that is held out, nor of a thing that its background hides."""
        while True:
            spec = scenes.draw_spec(rng)
            if spec.held_out:
                continue
            thing = self._thing(spec.style, spec.kind, spec.color, spec.pattern)
            worn = str(rng.choice(list(world.ACCESSORIES))) if rng.random() < _WORN_SHARE else None
            if worn:
                thing = self._dress(thing, worn, spec.style, rng)
            backdrop = self.painter.backdrop(spec.background, rng)
            if not scenes.clashes(thing, backdrop):
                said = replace(spec, color=None, pattern=None) if rng.random() < _UNSAID_SHARE else spec
                return Scene(spec, worn, scenes.caption(said, rng), self.painter.compose(thing, backdrop, rng))

    def _paint(self, style: str, kind: str, color: str | None, pattern: str | None) -> Image.Image:
        return self.painter.thing(Spec(kind=kind, style=style, color=color, pattern=pattern, background=_NOWHERE))

    def _dress(self, thing: Image.Image, worn: str, style: str, rng: np.random.Generator) -> Image.Image:
        """The thing with something worn anywhere near its middle."""
        side = round(rng.uniform(0.3, 0.5) * thing.width)
        small = self.painter.icons[style, worn].resize((side, side), Image.Resampling.BICUBIC)
        x, y = (round(rng.uniform(0.3, 0.7) * thing.width - side / 2) for _ in range(2))
        dressed = thing.copy()
        dressed.alpha_composite(small, (max(0, x), max(0, y)))
        return dressed


def loss_on(
    clip: CLIPModel, tokenizer: CLIPTokenizer, composer: Composer, batch: int = BATCH
) -> Callable[[torch.Generator], Tensor]:
    """The loss on a batch of freshly composed scenes."""
    attributes = vocabulary().attributes
    label_captions = [caption for captions in attributes.values() for caption in captions.values()]

    def loss_of(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = [composer.draw(rng) for _ in range(batch)]
        pixels = blurred(to_tensor(np.stack([np.asarray(scene.image) for scene in drawn])), generator)
        captions = [*(scene.caption for scene in drawn), *label_captions]
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        images = functional.normalize(pooled(clip.get_image_features(pixels)))
        texts = functional.normalize(pooled(clip.get_text_features(tokens.input_ids, tokens.attention_mask)))
        logits = clip.logit_scale.exp().clamp(max=100) * images @ texts.T
        own, of_labels = logits.split([batch, len(label_captions)], dim=1)
        pairs = torch.arange(batch)
        losses = [(functional.cross_entropy(own, pairs) + functional.cross_entropy(own.T, pairs)) / 2]
        sizes = [len(labels) for labels in attributes.values()]
        for (attribute, labels), answers in zip(attributes.items(), of_labels.split(sizes, dim=1), strict=True):
            losses.append(_label_loss(answers, list(labels), [scene.labels[attribute] for scene in drawn]))
        return torch.stack(losses).mean()

    return loss_of


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images at a lower resolution and all with some noise: a model's images are never as crisp.

    Args:
        images: (N, 3, H, W) in −1 … 1.
        generator: decides how.
    """
    half, side = len(images) // 2, images.shape[-1]
    low = int(torch.randint(3 * side // 8, side + 1, (1,), generator=generator))
    small = functional.interpolate(images[:half], size=(low, low), mode="bilinear", antialias=True)
    large = functional.interpolate(small, size=(side, side), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator)
    strength = 0.1 * torch.rand((len(images), 1, 1, 1), generator=generator)
    return torch.cat([large, images[half:]]) + strength * noise


def export(clip: CLIPModel, tokenizer: CLIPTokenizer, card: str, target: Path) -> None:
    """Writes the judge in half precision with what CLIPModel and CLIPProcessor load, its vocabulary and its card."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    processor = CLIPProcessor(image_processor=image_processor(), tokenizer=tokenizer)
    deepcopy(clip).half().save_pretrained(partial)
    processor.save_pretrained(partial)
    processor.image_processor.save_pretrained(partial)
    (partial / FILE).write_text(vocabulary().to_json())
    (partial / "README.md").write_text(card)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def image_processor() -> CLIPImageProcessor:
    """Any image to the judge's pixels: the shorter side to 128, the middle, −1 … 1."""
    side = {"height": scenes.SIZE, "width": scenes.SIZE}
    return CLIPImageProcessor(
        size={"shortest_edge": scenes.SIZE}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def _label_loss(answers: Tensor, labels: list[str], wanted: list[str | None]) -> Tensor:
    """Mean cross-entropy over the scenes that have the attribute; answers has shape (batch, labels)."""
    has_it = [row for row, label in enumerate(wanted) if label is not None]
    targets = torch.tensor([labels.index(label) for label in wanted if label is not None], dtype=torch.long)
    return functional.cross_entropy(answers[has_it], targets, reduction="sum") / max(1, len(has_it))
