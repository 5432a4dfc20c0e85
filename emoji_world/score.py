"""How often the judge finds in an image what was asked for, on combinations that were never trained on."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from emoji_world import scenes, world
from emoji_world.attributes import truth
from emoji_world.scenes import SceneRenderer, Spec
from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.formats.files import write_together
from hra_diffusion.metrics.bootstrap import Estimate, bootstrap
from hra_diffusion.metrics.encoders import Clip
from hra_diffusion.metrics.report import markdown_table
from hra_diffusion.metrics.vocabulary import Vocabulary, classify

STEPS, GUIDANCE = 25, 4.0
_BATCH = 8
_PLACES = {place.name for place in world.PLACES}


class Unseen(NamedTuple):
    """A held-out scene: what it shows, the prompt for it, and its real image."""

    spec: Spec
    prompt: str
    image: Image.Image


def unseen_scenes(painter: SceneRenderer, count: int, seed: int = 0) -> list[Unseen]:
    """Scenes of held-out combinations, none hidden by its background. Scene i depends on (seed, i) alone."""
    return [_unseen(painter, np.random.default_rng((seed, index))) for index in range(count)]


def draw(pipe: Any, unseen: Sequence[Unseen]) -> Iterator[Image.Image]:
    """The base model's images of the scenes' prompts, seed i for scene i."""
    for start in range(0, len(unseen), _BATCH):
        batch = unseen[start : start + _BATCH]
        generators = [torch.Generator().manual_seed(start + index) for index in range(len(batch))]
        prompts = [scene.prompt for scene in batch]
        yield from pipe(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators).images


def accuracy(
    clip: Clip, vocabulary: Vocabulary, images: Sequence[Image.Image], specs: Sequence[Spec]
) -> dict[str, Estimate]:
    """The share of images whose nearest label is the right one: object, color, pattern and three of backgrounds.

    Each is taken over the scenes that have it; those of which no scene has any are left out.
    """
    vectors = clip.images(images)
    told = {name: classify(clip, vectors, captions) for name, captions in vocabulary.attributes.items()}
    right: dict[str, list[bool]] = {}
    for index, spec in enumerate(specs):
        labels = truth(spec)
        for row, attribute in (("object", "object"), ("color", "color"), ("pattern", "pattern")):
            if labels[attribute]:
                right.setdefault(row, []).append(told[attribute][index] == labels[attribute])
        right.setdefault(_background_row(spec), []).append(told["background"][index] == labels["background"])
    rows = ("object", "color", "pattern", "plain background", "place", "backdrop")
    return {row: bootstrap(right[row]) for row in rows if row in right}


def write_report(
    folder: Path,
    name: str,
    unseen: Sequence[Unseen],
    drawn: Sequence[Image.Image],
    scores: dict[str, dict[str, Estimate]],
) -> str:
    """Write scores.json, scores.md and scores.png; returns the Markdown.

    Args:
        folder: where to.
        name: of the base model.
        unseen: the scenes.
        drawn: the base's images of them.
        scores: by row, then "base" and "real".
    """
    text = (
        f"Share of the judge's right answers on {len(unseen)} held-out combinations, seeds 0–{len(unseen) - 1}, "
        f"{STEPS} steps, guidance {GUIDANCE:g}, in brackets 95 % bootstrap intervals.\n\n"
        f"{markdown_table(scores, {'base': name, 'real': 'real scenes'})}\n"
    )
    record = {
        "prompts": [scene.prompt for scene in unseen],
        "seeds": list(range(len(unseen))),
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "scores": {row: {mode: asdict(score) for mode, score in modes.items()} for row, modes in scores.items()},
    }
    image = io.BytesIO()
    _sheet(unseen[:24], drawn[:24]).save(image, "PNG", optimize=True)
    write_together(
        {
            folder / "scores.json": (json.dumps(record, indent=1) + "\n").encode(),
            folder / "scores.md": text.encode(),
            folder / "scores.png": image.getvalue(),
        }
    )
    return text


def _sheet(unseen: Sequence[Unseen], drawn: Sequence[Image.Image]) -> Image.Image:
    return contact_sheet(
        [[scene.image, image] for scene, image in zip(unseen, drawn, strict=True)],
        [scene.prompt for scene in unseen],
        ["real scene", "drawn"],
    )


def _unseen(painter: SceneRenderer, rng: np.random.Generator) -> Unseen:
    while True:
        spec = scenes.draw_spec(rng)
        if not spec.held_out:
            continue
        thing, backdrop = painter.thing(spec), painter.backdrop(spec.background, rng)
        if not scenes.clashes(thing, backdrop):
            prompt = f"a {world.STYLES[spec.style]} of {spec.thing} {spec.background.phrases[0]}"
            return Unseen(spec, prompt, painter.compose(thing, backdrop, rng))


def _background_row(spec: Spec) -> str:
    if spec.background.kind == "plain":
        return "plain background"
    return "place" if spec.background.kind in _PLACES else "backdrop"
