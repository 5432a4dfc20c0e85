"""Two subjects in one image: `python benchmarks/regions.py`, minutes on two cores.

    --adapters assets/adapters/tiger assets/adapters/teapot
    --seeds 8
    --num_inference_steps 25
    --output_dir outputs/regions       the images
    --smoke                            one image with one step

The image is twice as wide as the embedded base's, so that each half has the base's size. The judge classifies the two
halves: the object, and whether the half is nearer to the real images of its own subject than to those of the other.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import describe_machine, print_table
from methods import SUBJECTS
from PIL import Image

from hra_diffusion import generate_image, load_hra_weights, load_pipeline, using_hra_adapters
from hra_diffusion.formats.files import write_file
from hra_diffusion.metrics import load_metric_models
from hra_diffusion.metrics.vocabulary import classify
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config.defaults import EMBEDDED_BASE

SIDE = 128
PROMPT = "a 3d render of a {} and a {}"

Mode = Callable[[], AbstractContextManager[Any]]


def modes(pipe: Pipeline, names: list[str]) -> dict[str, tuple[str, Mode]]:
    """Return the prompt and the activation of each row of the table."""
    left = torch.zeros(SIDE, 2 * SIDE)
    left[:, :SIDE] = 1
    masks = dict(zip(names, (left, 1 - left), strict=True))
    subjects = PROMPT.format(*(f"sks {name}" for name in names))
    return {
        "base": (PROMPT.format(*names), lambda: disable_hra(pipe)),
        "unbound, mean": (subjects, lambda: using_hra_adapters(pipe, names)),
        "unbound, product": (subjects, lambda: using_hra_adapters(pipe, names, combine="product")),
        "bound to tokens": (subjects, lambda: using_hra_adapters(pipe, names, bind="tokens")),
        "bound to regions": (subjects, lambda: using_hra_adapters(pipe, names, bind="region", masks=masks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = SUBJECTS.parent / "adapters"
    parser.add_argument("--adapters", nargs=2, type=Path, default=[folder / "tiger", folder / "teapot"])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/regions"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.seeds = options.num_inference_steps = 1
    print(describe_machine())
    names = [path.name for path in options.adapters]
    pipe = load_pipeline(str(EMBEDDED_BASE))
    for path in options.adapters:
        load_hra_weights(pipe, path, path.name)
    models = load_metric_models(str(EMBEDDED_BASE))
    assert models.vocabulary
    real = []
    for name in names:
        images = [Image.open(path).convert("RGB") for path in sorted((SUBJECTS / name / "held_out").glob("*.png"))]
        real.append(models.clip.encode_images(images).mean(axis=0))
    rows: list[list[Any]] = []
    for mode, (prompt, activate) in modes(pipe, names).items():
        crops: list[list[Image.Image]] = [[], []]
        for seed in range(options.seeds):
            with activate():
                image = generate_image(
                    pipe,
                    prompt,
                    seed,
                    height=SIDE,
                    width=2 * SIDE,
                    num_inference_steps=options.num_inference_steps,
                    guidance_scale=4.0,
                )
            write_file(options.output_dir / f"{mode}-{seed}.png", image.save)
            for half, half_crops in enumerate(crops):
                half_crops.append(image.crop((half * SIDE, 0, (half + 1) * SIDE, SIDE)))
        objects, nearer, cosines = [], [], []
        for half, half_crops in enumerate(crops):
            vectors = models.clip.encode_images(half_crops)
            labels = classify(models.clip, vectors, models.vocabulary.attributes["object"])
            objects += [label == names[half] for label in labels]
            own, other = vectors @ real[half], vectors @ real[1 - half]
            nearer += list(own > other)
            cosines += list(own)
        rows.append([mode, float(np.mean(objects)), float(np.mean(nearer)), float(np.mean(cosines))])
        print(*rows[-1], flush=True)
    print_table(
        f"{' and '.join(names)}, {options.seeds} images", ["", "object", "nearer to its own subject", "cosine"], rows
    )


if __name__ == "__main__":
    main()
