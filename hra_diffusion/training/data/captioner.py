"""Captions of images by an image-to-text model of transformers, such as BLIP, GIT or Florence-2."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image

from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.images import read_image
from hra_diffusion.training.data.captions import read_captions
from hra_diffusion.training.data.inventory import image_files

_MAX_TOKENS = 75
"""Length of a caption in tokens, at most: CLIP reads as many."""


class Captioner:
    """An image-to-text model, loaded from a folder, or from the hub if its name is one of the hub's.

    Args:
        name: the model's folder, or its name on the hub.
        prompt: the text input of models that need one, such as "<DETAILED_CAPTION>" for Florence-2; other models
            complete it.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, name: str, prompt: str | None = None) -> None:
        import transformers  # slow to import

        local = Path(name).is_dir()
        try:
            self.processor: Any = transformers.AutoProcessor.from_pretrained(name, local_files_only=local)
            model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                name, use_safetensors=True, local_files_only=local
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ModelError(
                f"{name!r} cannot be loaded as a captioner ({reason}): name a folder with a model for transformers' "
                "AutoModelForImageTextToText, or with a network a model of the hub."
            ) from error
        self.model: Any = model.eval().to(PartialState().device)
        self.prompt = prompt

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> str:
        """Return the caption of an RGB image, on one line; the same image always has the same."""
        text = {"text": self.prompt} if self.prompt else {}
        inputs = self.processor(images=image, return_tensors="pt", **text).to(self.model.device)
        tokens = self.model.generate(**inputs, max_new_tokens=_MAX_TOKENS, do_sample=False)
        return " ".join(self.processor.batch_decode(tokens, skip_special_tokens=True)[0].split())


def caption_folder(
    captioner: Captioner, folder: Path, prefix: str = "", overwrite: bool = False
) -> Iterator[tuple[Path, str]]:
    """Write a caption file beside each image of a folder; yield each image with its caption.

    Args:
        captioner: the model.
        folder: the image folder.
        prefix: the start of every caption, such as "a sks dog, ".
        overwrite: write captions of images that have one, too.

    Raises:
        ConfigError: there are no images, or all have captions.
        ImageError: the folder does not exist, or an image cannot be read.
        OutputError: a file cannot be written.
    """
    images = image_files(folder)
    if not images:
        raise ConfigError(f"There are no images in {folder}: check the path.")
    for image in _without_captions(images, {} if overwrite else read_captions(images, folder), folder):
        caption = prefix + captioner(read_image(image))
        write_file(image.with_suffix(".txt"), lambda path, text=caption: path.write_text(text, encoding="utf-8"))
        yield image, caption


def _without_captions(images: Sequence[Path], captions: Mapping[Path, str], folder: Path) -> list[Path]:
    rest = [image for image in images if image not in captions]
    if not rest:
        raise ConfigError(f"All images in {folder} have captions: add --overwrite to replace them.")
    return rest
