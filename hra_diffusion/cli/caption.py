"""``hra-diffusion caption``: captions of an image folder by an image-to-text model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Write captions beside the images of a folder, with an image-to-text model such as BLIP."""

    image_dir: tyro.conf.Positional[Path]
    """Image folder; the captions are text files of the same names."""
    captioner: str
    """Model of transformers for image to text: its folder, or its name on the hub, which downloads it."""
    caption_prompt: str | None = None
    """Text input of models that need one, such as "<DETAILED_CAPTION>" for Florence-2; others complete it."""
    caption_prefix: str = ""
    """Start of every caption, such as "a sks dog, "."""
    overwrite: bool = False
    """Replace existing captions."""


def main(arguments: Sequence[str]) -> None:
    """Write the captions, and print them."""
    config = parse_settings(CaptionConfig, arguments, prog="hra-diffusion caption")
    from hra_diffusion.training.data.captioner import Captioner, caption_folder  # imports torch: not for --help

    captioner = Captioner(config.captioner, config.caption_prompt)
    for image, caption in caption_folder(captioner, config.image_dir, config.caption_prefix, config.overwrite):
        print(f"{image.name}: {caption}")
