"""The training set: scenes rendered once into a memory-mapped array, with one caption each.

scenes.npy      uint8 of shape (N, 128, 128, 3)
captions.json   N captions
"""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from emoji_world import icons, scenes, world


def make_scenes(folder: Path, count: int, seed: int = 0) -> None:
    """Render `count` scenes into `folder`, once. Scene i depends on (seed, i) alone."""
    if (folder / "captions.json").exists():
        return
    icons.prepare(folder)
    renderer = scenes.SceneRenderer(icons.load(folder))
    shape = (count, scenes.SIZE, scenes.SIZE, 3)
    images = np.lib.format.open_memmap(folder / "scenes.npy", mode="w+", dtype=np.uint8, shape=shape)
    captions: list[str] = []
    for index in tqdm(range(count), desc="scenes"):
        rng = np.random.default_rng((seed, index))
        spec, image = scenes.sample_scene(renderer, rng)
        images[index] = np.asarray(image)
        captions.append(scenes.caption(spec, rng))
    images.flush()
    (folder / "captions.json").write_text(json.dumps(captions))


def load_scenes(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Return the images (memory-mapped) and captions that `make_scenes` wrote to `folder`."""
    return np.load(folder / "scenes.npy", mmap_mode="r"), json.loads((folder / "captions.json").read_text())


def held_out_scenes(renderer: scenes.SceneRenderer, count: int) -> np.ndarray:
    """Render scenes of the held-out kinds, uint8 of shape (count, 128, 128, 3)."""
    rng = np.random.default_rng(1)
    kinds = tuple(world.HELD_OUT_KINDS)
    return np.stack([np.asarray(renderer.render(scenes.sample_spec(rng, kinds), rng)) for _ in range(count)])
