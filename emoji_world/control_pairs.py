"""Scenes for the project's example control: training images, and held-out images with masks.

    control/            metadata.jsonl and images of combinations in the base's training set
    control/held_out    the same for held-out combinations, and masks/, white on the thing

They are committed: the default run needs neither npm nor a network. Images that the base generates could serve as
training data, but they would pass on its errors and cannot be a reference to measure against.
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
"""Seed of these scenes; the base's training set has other seeds."""


def write(renderer: SceneRenderer, folder: Path, train: int = 400, held_out: int = 200) -> None:
    """Render the scenes and write them."""
    for target, count, unseen in ((folder, train, False), (folder / "held_out", held_out, True)):
        files: dict[Path, bytes] = {}
        rows: list[dict[str, str]] = []
        for index in range(count):
            spec, image, mask = _scene(renderer, np.random.default_rng((SEED + unseen, index)), unseen)
            name = f"{index:03}.webp"
            files[target / name] = _encode(image, "WEBP", quality=QUALITY, method=6)
            if unseen:
                files[target / "masks" / f"{index:03}.png"] = _encode(mask.convert("1"), "PNG", optimize=True)
            prompt = f"a {world.STYLES[spec.style]} of {spec.thing} {spec.background.phrases[0]}"
            rows.append({"file_name": name, "text": prompt, "object": spec.kind})
        files[target / "metadata.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write_together(files)


def _scene(renderer: SceneRenderer, rng: np.random.Generator, unseen: bool) -> tuple[Spec, Image.Image, Image.Image]:
    """Return a scene and its mask: the same thing in white before black."""
    while True:
        spec = scenes.sample_spec(rng)
        thing, backdrop = renderer.thing(spec), renderer.backdrop(spec.background, rng)
        if spec.held_out == unseen and not scenes.clashes(thing, backdrop):
            break
    mask_rng = np.random.default_rng()
    mask_rng.bit_generator.state = rng.bit_generator.state
    white = Image.new("RGBA", thing.size, "white")
    white.putalpha(thing.getchannel("A"))
    mask = renderer.compose(white, Image.new("RGB", backdrop.size), mask_rng).convert("L")
    return spec, renderer.compose(thing, backdrop, rng), mask.point(lambda value: 255 * (value > 127))


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
