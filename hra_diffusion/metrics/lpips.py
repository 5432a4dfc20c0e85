"""LPIPS, a perceptual distance (Zhang et al., arXiv 1801.03924), with torchmetrics and torchvision."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from PIL import Image

from hra_diffusion.errors import ModelError
from hra_diffusion.householder.compact_wy import full_precision
from hra_diffusion.metrics.bootstrap import FloatArray

MIN_SIDE = 64
"""Smallest side of an image in pixels for AlexNet."""


class Lpips:
    """Mean LPIPS between the images of a prompt, with AlexNet."""

    name = "LPIPS"

    def __init__(self, metric: Any, device: torch.device | str = "cpu") -> None:
        """Wrap torchmetrics' LearnedPerceptualImagePatchSimilarity with ``normalize=True`` and mean reduction."""
        self._metric, self._device = metric, torch.device(device)

    def spread(self, images: Sequence[Sequence[Image.Image]]) -> FloatArray:
        """Return the mean distance over all pairs of a prompt's images: (prompts, seeds ≥ 2) → (prompts,)."""
        return np.array([self._mean_over_pairs(prompt_images) for prompt_images in images])

    def _mean_over_pairs(self, images: Sequence[Image.Image]) -> float:
        tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images]
        first, second = zip(*itertools.combinations(tensors, 2), strict=True)
        with torch.inference_mode(), full_precision(self._device):
            return float(self._metric(torch.stack(first).to(self._device), torch.stack(second).to(self._device)))


def load_lpips(*, device: torch.device | str = "cpu", local_files_only: bool = False) -> Lpips:
    """Load LPIPS; torchvision downloads AlexNet's weights (233 MB).

    Args:
        device: device of the network.
        local_files_only: download nothing, as with the hub offline.

    Raises:
        ModelError: a package or the weights are missing or unusable.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # pyright: ignore
        from torchvision.models import AlexNet_Weights  # pyright: ignore
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision for another torch raises any of them
        raise ModelError(
            f"LPIPS needs torchmetrics and a torchvision that fits torch ({error}): "
            "install the extra hra-diffusion[metrics]."
        ) from error
    weights = Path(torch.hub.get_dir(), "checkpoints", Path(AlexNet_Weights.DEFAULT.url).name)
    if (local_files_only or constants.HF_HUB_OFFLINE) and not weights.is_file():
        raise ModelError(f"LPIPS needs AlexNet's weights, which are not at {weights}.")
    try:
        return Lpips(LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device), device)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"LPIPS needs AlexNet's weights, and their download failed: {error}.") from error
