"""Two things side by side in one image, and the training that teaches them to a copy of the base.

The base knows single things. Its copy learns from images twice as wide, with a thing in each half, "a 3d render of a
red cat and a striped bus in the snow": the first thing of the caption is the left one. A third of the steps repeats
single things, so that the copy does not forget them and subjects can be trained on it. A third of the things has a
meaningless word before its name, "a qvz red cat": otherwise the trigger word of a subject counts as a thing of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from emoji_world import autoencoder, diffusion, world
from emoji_world.scenes import SIZE, SceneRenderer, Spec, caption, clashes, sample_scene, sample_spec

BATCH = 16
_SINGLES, _WORDS = 1 / 3, 1 / 3
"""Shares of the steps with single things, and of the things with a meaningless word."""


class Captioned(NamedTuple):
    """Latents (N, 8, H, W) of images, in half precision, and the token ids (N, 24) of their captions."""

    latents: Tensor
    token_ids: Tensor


def sample_pair(renderer: SceneRenderer, rng: np.random.Generator) -> tuple[tuple[Spec, Spec], Image.Image]:
    """Sample two things of different kinds and render them, RGB of 2 · SIZE × SIZE pixels; none is hidden."""
    while True:
        left, right = sample_spec(rng), sample_spec(rng)
        background = left.background
        if left.kind == right.kind or background.kind in world.BACKDROPS:
            continue
        right = replace(right, style=left.style, background=background)
        things, backdrop = [renderer.thing(left), renderer.thing(right)], renderer.backdrop(background, rng)
        if any(clashes(thing, backdrop) for thing in things):
            continue
        image = Image.new("RGB", (2 * SIZE, SIZE))
        mirrored = backdrop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # the halves meet without a seam
        for half, (thing, behind) in enumerate(zip(things, (backdrop, mirrored), strict=True)):
            image.paste(renderer.compose(thing, behind, rng), (half * SIZE, 0))
        return (left, right), image


def pair_caption(pair: tuple[Spec, Spec], rng: np.random.Generator) -> str:
    """Write the caption of the left thing as if it were alone, and add the right one behind it."""
    left, right = pair
    return caption(left, rng).replace(left.thing, f"{_named(left, rng)} and {_named(right, rng)}", 1)


def _named(spec: Spec, rng: np.random.Generator) -> str:
    """Return the thing in words, some with a word of three or four random letters after the article."""
    if rng.random() >= _WORDS:
        return spec.thing
    letters = rng.choice(list(ascii_lowercase), rng.integers(3, 5))
    return f"a {''.join(letters)} {spec.thing.split(' ', 1)[1]}"


@torch.no_grad()
def encode(vae: AutoencoderKL, tokenizer: CLIPTokenizer, scenes: Iterable[tuple[str, Image.Image]]) -> Captioned:
    """Encode captioned scenes of one size."""
    captions, latents = list[str](), list[Tensor]()
    for words, image in scenes:
        captions.append(words)
        pixels = autoencoder.to_tensor(np.asarray(image)[None])
        latents.append(vae.encode(pixels).latent_dist.mean.half())
    return Captioned(torch.cat(latents), diffusion.tokenize(tokenizer, captions))


def sample_singles(renderer: SceneRenderer, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Sample scenes of single things with captions. Scene i depends on i alone."""
    for index in range(count):
        rng = np.random.default_rng((2, index))
        spec, image = sample_scene(renderer, rng)
        yield caption(spec, rng).replace(spec.thing, _named(spec, rng), 1), image


def sample_pairs(renderer: SceneRenderer, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Sample scenes of two things with captions. Scene i depends on i alone."""
    for index in range(count):
        rng = np.random.default_rng((3, index))
        pair, image = sample_pair(renderer, rng)
        yield pair_caption(pair, rng), image


def loss_function(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, singles: Captioned, pairs: Captioned, empty: Tensor
) -> Callable[[torch.Generator], Tensor]:
    """Return the v-loss on a random batch of pairs, or of twice as many single things.

    `empty` (24,) is the empty caption.
    """
    losses = [
        diffusion.loss_function(unet, text_encoder, *scenes, empty, batch)
        for scenes, batch in ((singles, 2 * BATCH), (pairs, BATCH))
    ]

    def compute_loss(generator: torch.Generator) -> Tensor:
        several = float(torch.rand((), generator=generator)) >= _SINGLES
        return losses[several](generator)

    return compute_loss
