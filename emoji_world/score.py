"""The judge's accuracy on generated images: the share that matches the prompt, on held-out combinations."""

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
from emoji_world.attributes import true_labels
from emoji_world.scenes import SceneRenderer, Spec
from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.formats.files import write_together
from hra_diffusion.metrics.bootstrap import Estimate, bootstrap
from hra_diffusion.metrics.encoders import Clip
from hra_diffusion.metrics.report import markdown_table
from hra_diffusion.metrics.vocabulary import Vocabulary, classify

STEPS, GUIDANCE = 25, 4.0
_BATCH = 8
_LOCATIONS = {location.name for location in world.LOCATIONS}


class UnseenScene(NamedTuple):
    """A held-out scene: its content, its prompt and its real image."""

    spec: Spec
    prompt: str
    image: Image.Image


def unseen_scenes(renderer: SceneRenderer, count: int, seed: int = 0) -> list[UnseenScene]:
    """Render scenes of held-out combinations. Scene i depends on (seed, i) alone."""
    return [_unseen(renderer, np.random.default_rng((seed, index))) for index in range(count)]


def generate(pipe: Any, unseen: Sequence[UnseenScene]) -> Iterator[Image.Image]:
    """Generate images of the scenes' prompts with the base model, seed i for scene i."""
    for start in range(0, len(unseen), _BATCH):
        batch = unseen[start : start + _BATCH]
        generators = [torch.Generator().manual_seed(start + index) for index in range(len(batch))]
        prompts = [scene.prompt for scene in batch]
        yield from pipe(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators).images


def accuracy(
    clip: Clip, vocabulary: Vocabulary, images: Sequence[Image.Image], specs: Sequence[Spec]
) -> dict[str, Estimate]:
    """Return the share of images with the right nearest label: object, color, pattern and three kinds of background.

    Each share counts the scenes with the attribute; an attribute without scenes has no row.
    """
    vectors = clip.encode_images(images)
    predictions = {name: classify(clip, vectors, captions) for name, captions in vocabulary.attributes.items()}
    right: dict[str, list[bool]] = {}
    for index, spec in enumerate(specs):
        labels = true_labels(spec)
        for row, attribute in (("object", "object"), ("color", "color"), ("pattern", "pattern")):
            if labels[attribute]:
                right.setdefault(row, []).append(predictions[attribute][index] == labels[attribute])
        right.setdefault(_background_row(spec), []).append(predictions["background"][index] == labels["background"])
    # "place" is the row's name in the published scores.json.
    rows = ("object", "color", "pattern", "plain background", "place", "backdrop")
    return {row: bootstrap(right[row]) for row in rows if row in right}


def write_report(
    folder: Path,
    name: str,
    unseen: Sequence[UnseenScene],
    generated: Sequence[Image.Image],
    scores: dict[str, dict[str, Estimate]],
) -> str:
    """Write scores.json, scores.md and scores.png; return the Markdown.

    Args:
        folder: the folder of the three files.
        name: the name of the base model.
        unseen: the scenes.
        generated: the base's images of the scenes.
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
    _sheet(unseen[:24], generated[:24]).save(image, "PNG", optimize=True)
    write_together(
        {
            folder / "scores.json": (json.dumps(record, indent=1) + "\n").encode(),
            folder / "scores.md": text.encode(),
            folder / "scores.png": image.getvalue(),
        }
    )
    return text


def _sheet(unseen: Sequence[UnseenScene], generated: Sequence[Image.Image]) -> Image.Image:
    return contact_sheet(
        [[scene.image, image] for scene, image in zip(unseen, generated, strict=True)],
        [scene.prompt for scene in unseen],
        ["real scene", "generated"],
    )


def _unseen(renderer: SceneRenderer, rng: np.random.Generator) -> UnseenScene:
    while True:
        spec = scenes.sample_spec(rng)
        if not spec.held_out:
            continue
        thing, backdrop = renderer.thing(spec), renderer.backdrop(spec.background, rng)
        if not scenes.clashes(thing, backdrop):
            prompt = f"a {world.STYLES[spec.style]} of {spec.thing} {spec.background.phrases[0]}"
            return UnseenScene(spec, prompt, renderer.compose(thing, backdrop, rng))


def _background_row(spec: Spec) -> str:
    if spec.background.kind == "plain":
        return "plain background"
    return "place" if spec.background.kind in _LOCATIONS else "backdrop"
