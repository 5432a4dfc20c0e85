"""Captions of training images by a template, or by an image-to-text model."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.uploads import DECODING, read_upload

if TYPE_CHECKING:  # it imports torch
    from hra_diffusion.training.data.captioner import Captioner

TEMPLATE = "a photo of {trigger} {class}, {filename}"
_MAX_CHARACTERS = 1000


def template_captions(template: str, token: str, subject: str, names: Sequence[str]) -> list[str]:
    """Return the caption of each image.

    Args:
        template: a text with {trigger}, {class} and {filename}, the image's name without its extension.
        token: the trigger word.
        subject: the class.
        names: file names of the images.

    Raises:
        SettingError: the template is empty or too long, or has another word in braces.
    """
    if not template.strip() or len(template) > _MAX_CHARACTERS:
        raise SettingError("caption_template", f"is empty or longer than {_MAX_CHARACTERS} characters: give a text.")
    words = {"trigger": token.strip(), "class": subject.strip(), "filename": ""}
    for word in re.findall(r"{(.*?)}", template):
        if word not in words:
            known = ", ".join(f"{{{name}}}" for name in words)
            raise SettingError("caption_template", f"has {{{word[:40]}}}: use {known}.")
    texts = [words | {"filename": Path(name).stem} for name in names]
    return [re.sub(r"{(\w+)}", lambda match, text=text: text[match[1]], template).strip() for text in texts]


class ImageCaptions:
    """Captions by the image-to-text model of ``--captioner``, loaded at its first use, for one request at a time."""

    def __init__(self, config: StudioConfig) -> None:
        self._config = config
        self._captioner: Captioner | None = None
        self._lock = threading.Lock()

    def captions(self, files: Sequence[Path]) -> list[str]:
        """Return the caption of each image.

        Raises:
            ConfigError: the studio has no captioner.
            ModelError: it cannot be loaded.
            ImageError: an image cannot be read.
        """
        if self._config.captioner is None:
            raise ConfigError("The studio has no captioner: start it with --captioner and the folder of a model.")
        from hra_diffusion.training.data.captioner import Captioner  # imports torch and transformers

        with self._lock:
            self._captioner = self._captioner or Captioner(self._config.captioner, self._config.caption_prompt)
            return [self._captioner(image) for image in map(_decode_upload, files)]


def _decode_upload(file: Path) -> Image.Image:
    with DECODING:
        return read_upload(file)
