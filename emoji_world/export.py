"""The trained parts as one Stable Diffusion folder in half precision, with a model card."""

import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, CLIPTokenizer

from emoji_world import autoencoder, data, diffusion, icons, scenes, world

SAMPLE_PROMPTS = (
    "a 3d render of a cat on a blue background",
    "a flat icon of a tiger on the beach",
    "a 3d render of a green car in the snow",
    "a 3d render of a striped teapot on a wooden floor",
    "a flat icon of a penguin under water",
    "a 3d render of a robot in space",
    "a purple rocket at night",
    "a 3d render of an apple on a white background",
    "a flat icon of a house in a meadow",
    "a 3d render of a blue lion in the desert",
    "a fish at sunset",
    "a flat icon of a bus in the city",
    "a 3d render of a panda in the forest",
    "a 3d render of a sunflower on a black background",
    "a spotted pink elephant on a yellow background",
    "an owl in front of a brick wall",
)
_SIDE = 128


def export(folder: Path, target: Path) -> None:
    """Assemble the parts in `folder` (the work directory) into the pipeline folder `target`."""
    vae, unet = AutoencoderKL.from_pretrained(folder / "vae"), UNet2DConditionModel.from_pretrained(folder / "unet")
    for part in (vae, unet):
        part.register_to_config(_name_or_path="")  # The name would publish the path of the work directory.
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=diffusion.build_scheduler(),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    held_out = data.held_out_scenes(scenes.SceneRenderer(icons.load(folder)), 64)
    decibels = autoencoder.psnr(vae.to(memory_format=torch.channels_last), held_out)
    target.mkdir(parents=True, exist_ok=True)
    sample_grid(pipe).save(target / "samples.png", optimize=True)
    pipe.to(torch.float16).save_pretrained(target, safe_serialization=True)
    complete(target)
    logs = {part: _read_log(folder / f"{part}.jsonl") for part in ("autoencoder", "diffusion")}
    _curves(logs).save(target / "curves.png", optimize=True)
    card = _card(decibels, logs, scene_count=len(data.load_scenes(folder)[1]))
    (target / "README.md").write_text(card, encoding="utf-8")


def complete(target: Path) -> None:
    """Make a saved pipeline load without a dtype, and with other tools.

    transformers takes the dtype of the text encoder's config, diffusers float32: a pipeline of both cannot generate.
    Older tokenizers of CLIP read vocab.json and merges.txt instead of tokenizer.json.
    """
    file = target / "text_encoder" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"dtype": "float32"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    model = json.loads((target / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (target / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (target / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def sample_grid(pipe: StableDiffusionPipeline, columns: int = 4) -> Image.Image:
    """Generate the sixteen sample prompts at 25 steps, guidance 4, seed 0, with captions below."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(0) for _ in SAMPLE_PROMPTS]
    images = pipe(list(SAMPLE_PROMPTS), num_inference_steps=25, guidance_scale=4.0, generator=generators).images
    rows = math.ceil(len(images) / columns)
    width, height = _SIDE + 72, _SIDE + 34
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(grid)
    for index, (prompt, image) in enumerate(zip(SAMPLE_PROMPTS, images, strict=True)):
        x, y = index % columns * width, index // columns * height
        grid.paste(image, (x + (width - _SIDE) // 2, y + 4))
        draw.text((x + width // 2, y + _SIDE + 8), prompt, fill="black", font_size=8, anchor="ma")
    return grid


def _read_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _curves(logs: dict[str, list[dict[str, float]]]) -> Image.Image:
    """Plot the logarithm of the loss against the step, one panel for each part."""
    width, height, margin = 360, 220, 36
    image = Image.new("RGB", (width * len(logs), height), "white")
    draw = ImageDraw.Draw(image)
    for panel, (part, log) in enumerate(logs.items()):
        steps = [record["step"] for record in log]
        losses = [math.log(record["loss"]) for record in log]
        low, high = min(losses), max(losses)
        left = panel * width + margin
        points = [
            (
                left + step / steps[-1] * (width - 2 * margin),
                margin + (high - loss) / ((high - low) or 1) * (height - 2 * margin),
            )
            for step, loss in zip(steps, losses, strict=True)
        ]
        draw.rectangle((left, margin, left + width - 2 * margin, height - margin), outline="lightgray")
        draw.line(points, fill=(40, 90, 200), width=2)
        draw.text((left, 12), f"{part}: loss {math.exp(losses[0]):.3f} to {math.exp(losses[-1]):.3f}", fill="black")
        draw.text((left, height - 26), f"0 to {steps[-1]:.0f} steps", fill="gray")
    return image


def _card(decibels: float, logs: dict[str, list[dict[str, float]]], scene_count: int) -> str:
    def duration(part: str) -> str:
        last = logs[part][-1]
        return f"{last['step']:.0f} steps, {last['seconds'] / 60:.0f} minutes on two CPU cores"

    return f"""---
license: mit
pipeline_tag: text-to-image
tags: [text-to-image, diffusers, stable-diffusion]
---

# emoji-sd

A small Stable Diffusion of an emoji world, 128 × 128 pixels, that runs on a laptop without a network. Its purpose is
to demonstrate and to test personalization. It generates nothing outside its world.

![samples](samples.png)

## Use

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("assets/emoji-sd")
image = pipe("a 3d render of a cat on the beach", num_inference_steps=25, guidance_scale=4).images[0]
```

## Its world

{len(world.KINDS)} kinds of things in two styles ("a 3d render of", "a flat icon of"), in their own color or one of
{len(world.COLORS)}, plain, striped, checkered or spotted, on plain, two-colored or gradient backgrounds and in
{len(world.LOCATIONS)} locations. `emoji_world/world.py` lists them with their words.

[scores.md](scores.md) has the share of images that match their prompt, on held-out combinations. `python -m emoji_world
score` measured it.

## How it was made

`python -m emoji_world` trained it from random weights, on images and captions that the same code composes.

| part | network | training |
|---|---|---|
| autoencoder | AutoencoderKL, factor 8, 8 latent channels | {duration("autoencoder")} |
| text encoder and denoiser | CLIPTextModel, UNet2DConditionModel, v-prediction | {duration("diffusion")} |

{scene_count:,} scenes, one caption each. One combination of thing and background in ten is held out, and so are
whole kinds. On scenes of held-out kinds the autoencoder reaches {decibels:.1f} dB.

![curves](curves.png)

## Data and license

The icons are Microsoft's Fluent emoji (MIT license, © Microsoft Corporation), taken from the npm packages
{" and ".join(f"`{package}`" for package in icons.PACKAGES)}. Code renders the backgrounds. The weights are
under the MIT license as well.

## Limits

One thing in the middle of the image; no people, no text, no relations between things. Small details (eyes, wheels)
are often smeared. Words outside its world are spelled in letters without meaning to it.
"""
