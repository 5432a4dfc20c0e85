"""Encoders of images and texts as unit vectors: the judge, CLIP (Radford et al. 2021), DINO (Caron et al. 2021).

transformers loads them from safetensors, in float32; pickled weights are refused.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from hra_diffusion.errors import ModelError
from hra_diffusion.householder.compact_wy import full_precision
from hra_diffusion.metrics.bootstrap import FloatArray
from hra_diffusion.progress import tracked

CLIP = "openai/clip-vit-large-patch14"
DINO = "facebook/dino-vits16"
"""The encoders of the DreamBooth paper."""

_REVISIONS = {DINO: "refs/pr/1"}  # has safetensors; the main branch has a pickle
_BATCH = 32


class Encoder:
    """A map from images to unit vectors.

    Attributes:
        name: last part of the model's name or folder, for tables.
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        """Wrap a loaded model and its image processor."""
        self.name = Path(name).name
        self.model = model.eval().requires_grad_(False)
        self._processor = processor

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Encode RGB images of any sizes: (images, width), rows of length 1."""

        def encode(batch: Sequence[Image.Image]) -> Tensor:
            pixels = self._processor(images=list(batch), return_tensors="pt").pixel_values
            return self._image_features(pixels.to(self.model.device))

        return _unit_rows(encode, images, self.model.device)

    def _image_features(self, pixels: Tensor) -> Tensor:
        """Return the class token of the last layer, as in the DINO paper."""
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class Clip(Encoder):
    """A map from images and texts to unit vectors of one space."""

    def __init__(self, name: str, model: CLIPModel, processor: Any, tokenizer: Any) -> None:
        """Wrap a loaded model, its image processor and its tokenizer."""
        super().__init__(name, model, processor)
        self._tokenizer = tokenizer

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts, truncated to the model's length: (texts, width), rows of length 1."""
        length = self.model.config.text_config.max_position_embeddings

        def encode(batch: Sequence[str]) -> Tensor:
            tokens = self._tokenizer(
                list(batch), padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(self.model.device)
            return pooled(self.model.get_text_features(tokens.input_ids, tokens.attention_mask))

        return _unit_rows(encode, texts, self.model.device)

    def _image_features(self, pixels: Tensor) -> Tensor:
        return pooled(self.model.get_image_features(pixels))


def load_clip(name: str, *, device: torch.device | str = "cpu", local_files_only: bool = False) -> Clip:
    """Load a CLIP from a folder or the hub.

    Args:
        name: folder or hub name.
        device: device of the model.
        local_files_only: download nothing from the hub.

    Raises:
        ModelError: the model cannot be loaded, is incomplete, or is no CLIP.
    """
    model, processor, tokenizer = _load(name, local_files_only, CLIPModel, AutoImageProcessor, AutoTokenizer)
    return Clip(name, model.to(device), processor, tokenizer)


def load_dino(name: str = DINO, *, device: torch.device | str = "cpu", local_files_only: bool = False) -> Encoder:
    """Load a DINO, DINOv2 or other vision transformer; see :func:`load_clip`."""
    model, processor = _load(name, local_files_only, AutoModel, AutoImageProcessor)
    return Encoder(name, model.to(device), processor)


def pooled(features: Any) -> Tensor:
    """Unwrap CLIP's features, which transformers 5 wraps."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _load(name: str, local_files_only: bool, model_class: Any, *helper_classes: Any) -> tuple[Any, ...]:
    source = {"revision": _REVISIONS.get(name, "main"), "local_files_only": local_files_only}
    try:
        model, info = model_class.from_pretrained(name, use_safetensors=True, output_loading_info=True, **source)
        helpers = [helper.from_pretrained(name, **source) for helper in helper_classes]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name!r} cannot be loaded for measuring ({_first_line(error)}). A folder needs config.json, "
            "model.safetensors, preprocessor_config.json and, for a CLIP, the tokenizer's files; a model of the hub "
            "needs a network, or an earlier download."
        ) from error
    # DINO has no pooler, and none is used here. transformers fills other missing weights with random numbers.
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise ModelError(
            f"{name!r} is no {model_class.__name__}, or incomplete: it lacks {', '.join(missing[:4])}"
            f"{' and more' if missing[4:] else ''}."
        )
    return model.float(), *helpers


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _unit_rows(encode: Callable[[Sequence[Any]], Tensor], inputs: Sequence[Any], device: torch.device) -> FloatArray:
    """Encode in batches in float32, whatever the run's precision; return float64, for cosines of exactly one."""
    with torch.inference_mode(), full_precision(device):
        rows = torch.cat(
            [
                encode(inputs[start : start + _BATCH]).cpu().double()
                for start in tracked(range(0, len(inputs), _BATCH), "comparing with encoders")
            ]
        )
    return np.asarray(rows / rows.norm(dim=1, keepdim=True))
