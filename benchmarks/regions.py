"""Two subjects in one image: `python benchmarks/regions.py`, an hour on two cores.

    --model outputs/demo/emoji-sd-pairs    a base that knows two things in an image: see `python -m emoji_world pairs`
    --subjects tiger teapot cat robot …    folders in assets/subjects, two for each image; all by default
    --modes base "LoRA, sum" …             rows of the table; all by default
    --images 8                             of each pair of subjects
    --steps 200 --rank 8
    --num_inference_steps 25
    --output_dir outputs/regions           adapters and images
    --smoke                                one image of the embedded base, to check that the benchmark runs

Each subject is trained alone, on its own five images, with a trigger word of its own. The images are twice as wide as
those, so that each half has their size. The first subject belongs into the left half, the second one into the right
half. The judge classifies the halves: the object, its color and, of a subject with a pattern, its pattern; whether the
half is nearer to the real images of its own subject than to those of the other; and the mean cosine to its own ones,
for the subject that the prompt names first and for the second. Adapters and images are kept, so a second call resumes
the benchmark.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composition import Composition
from measure import describe_machine, print_table
from methods import held_out, instruments, subject_parser
from PIL import Image

from emoji_world import subjects
from hra_diffusion import generate_image, using_hra_adapters
from hra_diffusion.formats.files import write_file
from hra_diffusion.metrics.vocabulary import classify
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.training.config.defaults import EMBEDDED_BASE

SIDE = 128
SCORES = ("object", "color", "pattern", "nearer to its own subject", "cosine of the first", "cosine of the second")
PROMPT = "a 3d render of {} on a white background"

Mode = tuple[str, Callable[[], AbstractContextManager[Any]]]
"""A method of composition.py and an activation."""


def modes(composition: Composition, names: Sequence[str]) -> dict[str, Mode]:
    """Return the rows of the table for two subjects."""
    left = torch.zeros(SIDE, 2 * SIDE)
    left[:, :SIDE] = 1
    masks = dict(zip(names, (left, 1 - left), strict=True))

    prompts = {name: PROMPT.format(f"a {composition.phrase(name)}") for name in names}

    def hra(**binding: Any) -> Mode:
        return "HRA", lambda: composition.activated("HRA", names, **binding)

    return {
        "base": ("HRA", lambda: disable_hra(composition.pipeline("HRA"))),
        "unbound, mean": ("HRA", lambda: using_hra_adapters(composition.pipeline("HRA"), names)),
        "unbound, product": hra(),
        "LoRA, sum": ("LoRA", lambda: composition.activated("LoRA", names)),
        "bound to tokens": hra(bind="tokens"),
        "bound to regions": hra(bind="region", masks=masks),
        "bound to attention": hra(bind="region"),
        "regions with prompts": hra(bind="region", masks=masks, prompts=prompts),
    }


def generate(
    composition: Composition, mode: str, names: Sequence[str], options: argparse.Namespace
) -> Iterator[Image.Image]:
    """Yield the images of a pair of subjects, in one folder for each mode."""
    method, activate = modes(composition, names)[mode]
    things = names if mode == "base" else [composition.phrase(name) for name in names]
    prompt = PROMPT.format("a {} and a {}".format(*things))
    for seed in range(options.images):
        path = options.output_dir / "images" / mode / f"{' and '.join(names)}, {seed}.png"
        if not path.exists():
            with activate():
                image = generate_image(
                    composition.pipeline(method),
                    prompt,
                    seed,
                    height=SIDE,
                    width=2 * SIDE,
                    num_inference_steps=options.num_inference_steps,
                    guidance_scale=4.0,
                )
            write_file(path, image.save)
        yield Image.open(path).convert("RGB")


def judge(images: Sequence[Image.Image], names: Sequence[str]) -> dict[str, list[float]]:
    """Return for each half of each image whether the judge finds its subject, and its mean cosine to real images."""
    models = instruments()
    assert models.vocabulary
    known, found = models.vocabulary.attributes, dict[str, list[float]]()
    real = [models.clip.encode_images(held_out(name)).mean(axis=0) for name in names]
    for half, name in enumerate(names):
        subject = subjects.SUBJECTS[name]
        vectors = models.clip.encode_images([image.crop((half * SIDE, 0, (half + 1) * SIDE, SIDE)) for image in images])
        pattern = subject.pattern[0] if subject.pattern else None
        for attribute, target in (("object", name), ("color", subject.color), ("pattern", pattern)):
            if target:
                labels = classify(models.clip, vectors, known[attribute])
                found.setdefault(attribute, []).extend(label == target for label in labels)
        found.setdefault(SCORES[3], []).extend(vectors @ real[half] > vectors @ real[1 - half])
        found.setdefault(SCORES[4 + half], []).extend(vectors @ real[half])
    return found


def parse() -> argparse.Namespace:
    parser = subject_parser(__doc__, "outputs/regions")
    parser.set_defaults(model=str(Path("outputs/demo/emoji-sd-pairs")))
    parser.add_argument("--modes", nargs="+")
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    if options.smoke:
        options.subjects, options.model = ["tiger", "teapot"], str(EMBEDDED_BASE)
        options.steps = options.images = options.num_inference_steps = 1
    if not Path(options.model).exists():
        parser.error(f"--model {options.model} does not exist: python -m emoji_world pairs makes it.")
    return options


def main() -> None:
    options = parse()
    print(describe_machine())
    composition = Composition("own", options)
    pairs = list(zip(options.subjects[::2], options.subjects[1::2], strict=False))
    table: list[list[Any]] = []
    for mode in options.modes or modes(composition, pairs[0]):
        found: dict[str, list[float]] = {}
        for names in pairs:
            for score, values in judge(list(generate(composition, mode, names, options)), names).items():
                found.setdefault(score, []).extend(values)
        table.append([mode, *(float(np.mean(found[score])) if score in found else "–" for score in SCORES)])
        print(*table[-1], flush=True)
    title = f"{len(pairs)} pairs of subjects, {options.images} images each, {Path(options.model).name}"
    print_table(title, ["", *SCORES], table)


if __name__ == "__main__":
    main()
