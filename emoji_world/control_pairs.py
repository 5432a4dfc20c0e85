"""Real scenes for the control that comes with the project: some to train on, others held out, with their masks.

    control/            metadata.jsonl and images of combinations that the base saw in training
    control/held_out    the same for combinations it never saw, and masks/, white where the thing is

They are committed, so that the default run needs neither npm nor a network. The base's own images would do for
training, too, but would teach its faults and could not be measured against.
"""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from emoji_world import scenes, world
from emoji_world.scenes import SceneRenderer, Spec
from hra_diffusion.formats.files import write_together

QUALITY = 70
SEED = 20_000
"""Scenes of their own, which are none of the base's training set."""


def make(painter: SceneRenderer, folder: Path, train: int = 400, held_out: int = 200) -> None:
    """Draw the scenes and write them."""
    for place, count, unseen in ((folder, train, False), (folder / "held_out", held_out, True)):
        files: dict[Path, bytes] = {}
        rows: list[dict[str, str]] = []
        for index in range(count):
            spec, image, mask = _scene(painter, np.random.default_rng((SEED + unseen, index)), unseen)
            name = f"{index:03}.webp"
            files[place / name] = _encoded(image, "WEBP", quality=QUALITY, method=6)
            if unseen:
                files[place / "masks" / f"{index:03}.png"] = _encoded(mask.convert("1"), "PNG", optimize=True)
            prompt = f"a {world.STYLES[spec.style]} of {spec.thing} {spec.background.phrases[0]}"
            rows.append({"file_name": name, "text": prompt, "object": spec.kind})
        files[place / "metadata.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write_together(files)


def _scene(painter: SceneRenderer, rng: np.random.Generator, unseen: bool) -> tuple[Spec, Image.Image, Image.Image]:
    """A scene and its mask, which is the same thing in white before black."""
    while True:
        spec = scenes.draw_spec(rng)
        thing, backdrop = painter.thing(spec), painter.backdrop(spec.background, rng)
        if spec.held_out == unseen and not scenes.clashes(thing, backdrop):
            break
    again = np.random.default_rng()
    again.bit_generator.state = rng.bit_generator.state
    white = Image.new("RGBA", thing.size, "white")
    white.putalpha(thing.getchannel("A"))
    mask = painter.compose(white, Image.new("RGB", backdrop.size), again).convert("L")
    return spec, painter.compose(thing, backdrop, rng), mask.point(lambda value: 255 * (value > 127))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
