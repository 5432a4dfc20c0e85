"""What the judge's card says: how it was made, and how well it sees on scenes and subjects it never saw."""

from pathlib import Path

import numpy as np
from PIL import Image

from emoji_world import icons, scenes, world
from emoji_world.scenes import SceneRenderer, Spec
from emoji_world.score import accuracy, unseen_scenes
from emoji_world.subjects import SUBJECTS
from hra_diffusion.metrics.bootstrap import Estimate, bootstrap
from hra_diffusion.metrics.encoders import Clip
from hra_diffusion.metrics.report import markdown_table
from hra_diffusion.metrics.scores import fidelity
from hra_diffusion.metrics.vocabulary import Vocabulary

_OTHERS = 12


def card(
    clip: Clip, vocabulary: Vocabulary, painter: SceneRenderer, subjects: Path, trained: str, count: int = 1000
) -> str:
    """The card's text.

    Args:
        clip: the judge.
        vocabulary: what it can tell.
        painter: composes the scenes it is measured on.
        subjects: the folder of subjects; those that are there are measured.
        trained: how long, in words.
        count: how many scenes.
    """
    unseen = unseen_scenes(painter, count)
    right = accuracy(clip, vocabulary, [scene.image for scene in unseen], [scene.spec for scene in unseen])
    table = markdown_table({row: {"real": score} for row, score in right.items()}, {"real": "right"})
    told_apart = markdown_table(
        told_apart_table(clip, painter, subjects), {"same": "its held-out images", "other": "others of its kind"}
    )
    parameters = sum(parameter.numel() for parameter in clip.model.parameters())
    return f"""---
license: mit
pipeline_tag: zero-shot-image-classification
tags: [clip, transformers]
---

# emoji-clip

A CLIP of {parameters / 1e6:.1f} million parameters that measures images of the emoji world: how near they are to real
images of a subject (CLIP-I), to their prompt (CLIP-T), and what they show. It knows that world and nothing else.

## Use

```python
from transformers import CLIPModel, CLIPProcessor

judge = CLIPModel.from_pretrained("assets/emoji-clip")
processor = CLIPProcessor.from_pretrained("assets/emoji-clip")
```

`hra-diffusion evaluate` and `python -m emoji_world score` use it. `judge.json` lists the captions that serve as
labels: the object in an image is the kind whose caption is nearest.

## How it was made

`python -m emoji_world judge`: {trained}, on
scenes composed as it went, {len(world.KINDS)} kinds of things in {len(world.STYLES)} styles with their captions; never
on an image that a model drew. Contrastive loss on whole captions, and on the labels of each attribute.

## How well it sees

Share of right answers on {count:,} real scenes of combinations of thing and background it was never shown, with 95 %
bootstrap intervals:

{table}

Cosine of a subject's training images to its held-out ones, and to others of its kind. No subject was in its
training, but things that wear something were:

{told_apart}

## Data and license

The icons are Microsoft's Fluent emoji (MIT license, © Microsoft Corporation), taken from the npm packages
{" and ".join(f"`{package}`" for package in icons.PACKAGES)}. Backgrounds are drawn by code. The weights are
under the MIT license as well.

## Limits

It takes any image for one of its world. On photographs its numbers mean nothing.
"""


def told_apart_table(clip: Clip, painter: SceneRenderer, folder: Path) -> dict[str, dict[str, Estimate]]:
    """For each subject with a folder: the fidelity of its images to its held-out ones and to others of its kind."""
    rows: dict[str, dict[str, Estimate]] = {}
    for number, (name, subject) in enumerate(SUBJECTS.items()):
        if not (folder / name).is_dir():
            continue
        own, held_out = (clip.images(_images(place)) for place in (folder / name, folder / name / "held_out"))
        others = clip.images(_others(painter, subject.kind, np.random.default_rng((11, number))))
        pairs = {"same": fidelity(own, held_out), "other": fidelity(own, others)}
        rows[subject.description] = {column: bootstrap(values) for column, values in pairs.items()}
    return rows


def _others(painter: SceneRenderer, kind: str, rng: np.random.Generator) -> list[Image.Image]:
    style = next(iter(world.STYLES))
    specs = [Spec(kind=kind, style=style, background=scenes.draw_background(rng)) for _ in range(_OTHERS)]
    return [painter.render(spec, rng) for spec in specs]


def _images(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
