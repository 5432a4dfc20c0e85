"""The protocol of PEFT's image benchmark (`method_comparison/image-gen`): settings, images and their split.

The settings are PEFT's file at a fixed commit, read from a local file or from GitHub. 20 images of a cat, each with a
caption, are shuffled by numpy's seed 0: 14 to train on, 2 for validation, 4 for the test. Training images are resized
to a square, without a crop. Similarity is the cosine of DINOv2's class tokens of a generated and a real image of the
same caption; drift is 1 − that of images with and without the adapter.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np
from PIL import Image
from PIL.ImageOps import exif_transpose

COMMIT = "5d602fdbff04c33c1c4de55cda9d4ae1d7cb7e40"
SETTINGS = (
    f"https://raw.githubusercontent.com/huggingface/peft/{COMMIT}/method_comparison/image-gen/"
    "default_training_params.json"
)

Settings = dict[str, Any]
"""PEFT's training settings by their names there."""

SMOKE: Settings = {
    "dataset_id": "random images",
    "dtype": "float32",
    "resolution": 32,
    "batch_size": 2,
    "max_steps": 3,
    "eval_steps": 2,
    "use_gc": True,
    "seed": 0,
    "grad_norm_clip": 1.0,
    "instance_prompts": [f"sks cat {number}" for number in range(6)],
    "valid_size": 1,
    "test_size": 2,
    "num_inference_steps": 1,
    "guidance_scale": 3.5,
    "max_sequence_length": 16,
    "text_encoder_out_layers": [10, 20, 28],
    "sample_image_prompts": ["a photo of sks cat"],
    "drift_image_prompts": ["a photo of cat"],
}
"""Settings of a tiny model with random images."""


class Captioned(NamedTuple):
    """An image of the data set with its caption."""

    image: Image.Image
    caption: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """The images to train on, to validate with and to test with."""

    train: Sequence[Captioned]
    valid: Sequence[Captioned]
    test: Sequence[Captioned]


def read_settings(path: Path | None) -> Settings:
    """Read PEFT's `default_training_params.json` from a file, or from PEFT's repository without one."""
    if path:
        return json.loads(path.read_text("utf-8"))
    with urlopen(SETTINGS) as response:
        return json.load(response)


def read_images(settings: Settings) -> list[Image.Image]:
    """Download the images of the data set from the hub; random ones in a smoke test."""
    if settings is SMOKE:
        rng = np.random.default_rng(0)
        return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in settings["instance_prompts"]]
    from datasets import load_dataset  # pip install 'hra-diffusion[datasets]'

    rows: Any = load_dataset(settings["dataset_id"], split=settings["dataset_split"])
    return list(rows[settings["image_column"]])


def split_images(images: Sequence[Image.Image], settings: Settings) -> Split:
    """Split images with their captions as PEFT does.

    Raises:
        ValueError: there is not one caption for each image.
    """
    captions = settings["instance_prompts"]
    if len(captions) != len(images):
        raise ValueError(f"PEFT's settings have {len(captions)} captions for {len(images)} images: another data set?")
    order = np.arange(len(images))
    np.random.RandomState(0).shuffle(order)  # the stream of np.random.seed(0)
    rows = [Captioned(exif_transpose(images[i].convert("RGB")), captions[i]) for i in order]
    held_out = settings["valid_size"] + settings["test_size"]
    train, rest = rows[: len(rows) - held_out], rows[len(rows) - held_out :]
    return Split(train=train, valid=rest[: settings["valid_size"]], test=rest[settings["valid_size"] :])


def write_training_images(train: Sequence[Captioned], folder: Path, resolution: int) -> Path:
    """Write training images, resized to squares, with their captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, caption) in enumerate(train):
        image.resize((resolution, resolution), Image.Resampling.BILINEAR).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption, "utf-8")
    return folder
