"""The judge's model card: how the judge was made, and its accuracy on held-out scenes and subjects."""

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
    clip: Clip, vocabulary: Vocabulary, renderer: SceneRenderer, subjects: Path, trained: str, count: int = 1000
) -> str:
    """Measure the judge and return the card's text.

    Args:
        clip: the judge.
        vocabulary: its labels with captions.
        renderer: composes the scenes to measure on.
        subjects: the folder of subjects; every subject with a folder is measured.
        trained: the duration of the training, in words.
        count: the number of scenes.
    """
    unseen = unseen_scenes(renderer, count)
    right = accuracy(clip, vocabulary, [scene.image for scene in unseen], [scene.spec for scene in unseen])
    table = markdown_table({row: {"real": score} for row, score in right.items()}, {"real": "right"})
    discrimination = markdown_table(
        discrimination_table(clip, renderer, subjects), {"same": "its held-out images", "other": "others of its kind"}
    )
    parameters = sum(parameter.numel() for parameter in clip.model.parameters())
    return f"""---
license: mit
pipeline_tag: zero-shot-image-classification
tags: [clip, transformers]
---

# emoji-clip

A CLIP of {parameters / 1e6:.1f} million parameters that measures images of the emoji world: how near they are to real
images of a subject (CLIP-I), to their prompt (CLIP-T), and their content. It knows nothing outside that world.

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
newly composed scenes, {len(world.KINDS)} kinds of things in {len(world.STYLES)} styles with their captions; never on
a generated image. Contrastive loss on whole captions, and on the labels of each attribute.

## Accuracy

Share of right answers on {count:,} real scenes of held-out combinations of thing and background, with 95 % bootstrap
intervals:

{table}

Cosine of a subject's training images to its held-out ones, and to others of its kind. The judge's training had no
subject, but it had things with accessories:

{discrimination}

## Data and license

The icons are Microsoft's Fluent emoji (MIT license, © Microsoft Corporation), taken from the npm packages
{" and ".join(f"`{package}`" for package in icons.PACKAGES)}. Code renders the backgrounds. The weights are
under the MIT license as well.

## Limits

The judge treats any image as one of its world. On photographs its numbers mean nothing.
"""


def discrimination_table(clip: Clip, renderer: SceneRenderer, folder: Path) -> dict[str, dict[str, Estimate]]:
    """Return the fidelity of each subject's images to its held-out ones and to others of its kind."""
    rows: dict[str, dict[str, Estimate]] = {}
    for number, (name, subject) in enumerate(SUBJECTS.items()):
        if not (folder / name).is_dir():
            continue
        training, held_out = (clip.encode_images(_images(path)) for path in (folder / name, folder / name / "held_out"))
        others = clip.encode_images(_others(renderer, subject.kind, np.random.default_rng((11, number))))
        pairs = {"same": fidelity(training, held_out), "other": fidelity(training, others)}
        rows[subject.description] = {column: bootstrap(values) for column, values in pairs.items()}
    return rows


def _others(renderer: SceneRenderer, kind: str, rng: np.random.Generator) -> list[Image.Image]:
    style = next(iter(world.STYLES))
    specs = [Spec(kind=kind, style=style, background=scenes.sample_background(rng)) for _ in range(_OTHERS)]
    return [renderer.render(spec, rng) for spec in specs]


def _images(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
