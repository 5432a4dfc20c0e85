"""Two subjects in one image: `python benchmarks/regions.py`, minutes on two cores.

    --adapters assets/adapters/tiger assets/adapters/teapot
    --modes base "LoRA, sum" …         rows of the table; all by default
    --seeds 8
    --num_inference_steps 25
    --output_dir outputs/regions       the images
    --smoke                            one image with one step

The image is twice as wide as the embedded base's, so that each half has the base's size. The first subject belongs into
the left half, the second one into the right half. The judge classifies the halves: the object, its color and, of a
subject with a pattern, its pattern; and whether the half is nearer to the real images of its own subject than to those
of the other. "LoRA, sum" is the sum of the adapters' exact LoRAs, loaded by diffusers.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import describe_machine, print_table
from methods import SUBJECTS
from PIL import Image
from safetensors.torch import load_file, save_file

from emoji_world import subjects
from hra_diffusion import export_lora, generate_image, load_hra_weights, load_pipeline, using_hra_adapters
from hra_diffusion.formats.files import write_file
from hra_diffusion.metrics import load_metric_models
from hra_diffusion.metrics.vocabulary import classify
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config.defaults import EMBEDDED_BASE

SIDE = 128
PROMPT = "a 3d render of a {} and a {}"

Mode = tuple[str, Callable[[], Pipeline], Callable[[], AbstractContextManager[Any]]]
"""A prompt, a pipeline and an activation."""


def with_adapters(folders: list[Path]) -> Pipeline:
    """Load the embedded base with adapters, by their folders' names."""
    pipe = load_pipeline(str(EMBEDDED_BASE))
    for folder in folders:
        load_hra_weights(pipe, folder, folder.name)
    return pipe


def with_loras(folders: list[Path]) -> Pipeline:
    """Load the embedded base with the sum of the exact LoRAs of adapters, as one LoRA of all their ranks.

    Of several LoRAs, transformers 5 reports the earlier ones of a text encoder as missing and initialized anew.
    """
    pipe: Any = load_pipeline(str(EMBEDDED_BASE))
    with TemporaryDirectory() as temporary:
        loras = []
        for folder in folders:
            file = Path(temporary) / f"{folder.name}.safetensors"
            export_lora(folder, file, base=EMBEDDED_BASE, layout="diffusers", dtype="fp32")
            loras.append(load_file(file))
        names = dict.fromkeys(name for lora in loras for name in lora)
        tensors = {
            name: torch.cat([lora[name] for lora in loras if name in lora], dim=0 if ".lora_A." in name else 1)
            for name in names
        }
        save_file(tensors, Path(temporary) / "sum.safetensors", {"format": "pt"})
        pipe.load_lora_weights(temporary, weight_name="sum.safetensors")
    return pipe


def modes(folders: list[Path]) -> dict[str, Mode]:
    """Return the rows of the table."""
    names = [folder.name for folder in folders]
    left = torch.zeros(SIDE, 2 * SIDE)
    left[:, :SIDE] = 1
    masks = dict(zip(names, (left, 1 - left), strict=True))
    prompt = PROMPT.format(*(f"sks {name}" for name in names))
    pipe = with_adapters(folders)
    return {
        "base": (PROMPT.format(*names), lambda: pipe, lambda: disable_hra(pipe)),
        "unbound, mean": (prompt, lambda: pipe, lambda: using_hra_adapters(pipe, names)),
        "unbound, product": (prompt, lambda: pipe, lambda: using_hra_adapters(pipe, names, combine="product")),
        "LoRA, sum": (prompt, lambda: with_loras(folders), nullcontext),
        "bound to tokens": (prompt, lambda: pipe, lambda: using_hra_adapters(pipe, names, bind="tokens")),
        "bound to regions": (
            prompt,
            lambda: pipe,
            lambda: using_hra_adapters(pipe, names, bind="region", masks=masks),
        ),
        "bound to attention": (prompt, lambda: pipe, lambda: using_hra_adapters(pipe, names, bind="region")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = SUBJECTS.parent / "adapters"
    parser.add_argument("--adapters", nargs=2, type=Path, default=[folder / "tiger", folder / "teapot"])
    parser.add_argument("--modes", nargs="+")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/regions"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.seeds = options.num_inference_steps = 1
    print(describe_machine())
    names = [path.name for path in options.adapters]
    models = load_metric_models(str(EMBEDDED_BASE))
    assert models.vocabulary
    known = models.vocabulary.attributes
    real = []
    for name in names:
        images = [Image.open(path).convert("RGB") for path in sorted((SUBJECTS / name / "held_out").glob("*.png"))]
        real.append(models.clip.encode_images(images).mean(axis=0))
    rows: list[list[Any]] = []
    for mode, (prompt, load, activate) in modes(options.adapters).items():
        if options.modes and mode not in options.modes:
            continue
        pipe, crops = load(), ([], [])
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
        row: list[Any] = [mode]
        nearer: list[bool] = []
        for half, half_crops in enumerate(crops):
            vectors, subject = models.clip.encode_images(half_crops), subjects.SUBJECTS[names[half]]
            pattern = subject.pattern[0] if subject.pattern else None
            for attribute, target in (("object", names[half]), ("color", subject.color), ("pattern", pattern)):
                if target:
                    labels = classify(models.clip, vectors, known[attribute])
                    row.append(float(np.mean([label == target for label in labels])))
            nearer += list(vectors @ real[half] > vectors @ real[1 - half])
        rows.append([*row, float(np.mean(nearer))])
        print(*rows[-1], flush=True)
    header = [
        f"{name}: {attribute}"
        for name in names
        for attribute in ("object", "color", *(["pattern"] if subjects.SUBJECTS[name].pattern else []))
    ]
    print_table(f"{' and '.join(names)}, {options.seeds} images", ["", *header, "nearer to its own subject"], rows)


if __name__ == "__main__":
    main()
