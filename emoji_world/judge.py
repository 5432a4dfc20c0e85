"""The judge: a small CLIP of the emoji world (Radford et al., arXiv 2103.00020), trained on composed scenes alone.

The loss has unit vectors p of images and t of texts and a learned temperature. Its first term is the cross-entropy
over the batch of p·t, both ways, for whole captions; some captions leave color and pattern out. Its second term is, for
each attribute, the cross-entropy over the captions of all labels ("a cat", "a dog", …): prompts then classify like a
classification head. Some things wear accessories, so that the vectors distinguish individuals of a kind.
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
from emoji_world.attributes import true_labels, vocabulary
from emoji_world.autoencoder import to_tensor
from emoji_world.scenes import Background, SceneRenderer, Spec
from emoji_world.tokenizer import LENGTH
from hra_diffusion.metrics.encoders import pooled
from hra_diffusion.metrics.vocabulary import FILE

BATCH = 96
_WORN_SHARE = 0.25
_SHORT_CAPTION_SHARE = 0.3  # without color and pattern, so that a green tiger is a tiger, too
_WIDTH = 128
_NOWHERE = Background(kind="plain", colors=("white",))


class Scene(NamedTuple):
    """An image with its spec and a true caption."""

    spec: Spec
    worn: str | None
    caption: str
    image: Image.Image

    @property
    def labels(self) -> dict[str, str | None]:
        """The label of each attribute; None for an attribute without a label."""
        return true_labels(self.spec, self.worn)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Build the untrained judge: 64 patches of 16 pixels, six image layers, two text layers, 128 channels."""
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
    """Composes scenes to train on; a cache holds the rendered things."""

    def __init__(self, renderer: SceneRenderer) -> None:
        self.renderer = renderer
        self._thing = functools.lru_cache(maxsize=4096)(self._render_thing)

    def sample(self, rng: np.random.Generator) -> Scene:
        """Compose a random scene; never a held-out combination or a thing hidden by its background."""
        while True:
            spec = scenes.sample_spec(rng)
            if spec.held_out:
                continue
            thing = self._thing(spec.style, spec.kind, spec.color, spec.pattern)
            worn = str(rng.choice(list(world.ACCESSORIES))) if rng.random() < _WORN_SHARE else None
            if worn:
                thing = self._dress(thing, worn, spec.style, rng)
            backdrop = self.renderer.backdrop(spec.background, rng)
            if not scenes.clashes(thing, backdrop):
                described = replace(spec, color=None, pattern=None) if rng.random() < _SHORT_CAPTION_SHARE else spec
                return Scene(spec, worn, scenes.caption(described, rng), self.renderer.compose(thing, backdrop, rng))

    def _render_thing(self, style: str, kind: str, color: str | None, pattern: str | None) -> Image.Image:
        return self.renderer.thing(Spec(kind=kind, style=style, color=color, pattern=pattern, background=_NOWHERE))

    def _dress(self, thing: Image.Image, worn: str, style: str, rng: np.random.Generator) -> Image.Image:
        """Return the thing with an accessory near its middle."""
        side = round(rng.uniform(0.3, 0.5) * thing.width)
        small = self.renderer.icons[style, worn].resize((side, side), Image.Resampling.BICUBIC)
        x, y = (round(rng.uniform(0.3, 0.7) * thing.width - side / 2) for _ in range(2))
        dressed = thing.copy()
        dressed.alpha_composite(small, (max(0, x), max(0, y)))
        return dressed


def loss_function(
    clip: CLIPModel, tokenizer: CLIPTokenizer, composer: Composer, batch: int = BATCH
) -> Callable[[torch.Generator], Tensor]:
    """Return the loss on a batch of newly composed scenes."""
    attributes = vocabulary().attributes
    label_captions = [caption for captions in attributes.values() for caption in captions.values()]

    def compute_loss(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        batch_scenes = [composer.sample(rng) for _ in range(batch)]
        pixels = blurred(to_tensor(np.stack([np.asarray(scene.image) for scene in batch_scenes])), generator)
        captions = [*(scene.caption for scene in batch_scenes), *label_captions]
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        images = functional.normalize(pooled(clip.get_image_features(pixels)))
        texts = functional.normalize(pooled(clip.get_text_features(tokens.input_ids, tokens.attention_mask)))
        logits = clip.logit_scale.exp().clamp(max=100) * images @ texts.T
        caption_logits, label_logits = logits.split([batch, len(label_captions)], dim=1)
        pairs = torch.arange(batch)
        losses = [
            (functional.cross_entropy(caption_logits, pairs) + functional.cross_entropy(caption_logits.T, pairs)) / 2
        ]
        sizes = [len(labels) for labels in attributes.values()]
        for (attribute, labels), part in zip(attributes.items(), label_logits.split(sizes, dim=1), strict=True):
            losses.append(_label_loss(part, list(labels), [scene.labels[attribute] for scene in batch_scenes]))
        return torch.stack(losses).mean()

    return compute_loss


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images and add some noise to all: generated images are never as crisp as composed ones.

    Args:
        images: (N, 3, H, W) in −1 … 1.
        generator: decides the resolution of the blur and the noise.
    """
    half, side = len(images) // 2, images.shape[-1]
    low = int(torch.randint(3 * side // 8, side + 1, (1,), generator=generator))
    small = functional.interpolate(images[:half], size=(low, low), mode="bilinear", antialias=True)
    large = functional.interpolate(small, size=(side, side), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator)
    strength = 0.1 * torch.rand((len(images), 1, 1, 1), generator=generator)
    return torch.cat([large, images[half:]]) + strength * noise


def export(clip: CLIPModel, tokenizer: CLIPTokenizer, card: str, target: Path) -> None:
    """Write the judge in half precision for CLIPModel and CLIPProcessor, with its vocabulary and card."""
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
    """Return the judge's image processor: shorter side to 128, center crop, −1 … 1."""
    side = {"height": scenes.SIZE, "width": scenes.SIZE}
    return CLIPImageProcessor(
        size={"shortest_edge": scenes.SIZE}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def _label_loss(logits: Tensor, labels: list[str], wanted: list[str | None]) -> Tensor:
    """Return the mean cross-entropy over the scenes with the attribute; logits have shape (batch, labels)."""
    labeled = [row for row, label in enumerate(wanted) if label is not None]
    targets = torch.tensor([labels.index(label) for label in wanted if label is not None], dtype=torch.long)
    return functional.cross_entropy(logits[labeled], targets, reduction="sum") / max(1, len(labeled))
