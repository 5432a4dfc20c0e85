"""Pairwise perceptual distance, LPIPS (Zhang et al., arXiv 1801.03924), through torchmetrics and torchvision."""

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

SMALLEST = 64
"""Side in pixels below which the network has nothing left to see."""


class Lpips:
    """The mean LPIPS between images of a prompt, with AlexNet."""

    name = "LPIPS"

    def __init__(self, metric: Any, device: torch.device | str = "cpu") -> None:
        """Take torchmetrics' LearnedPerceptualImagePatchSimilarity, normalizing and taking the mean, and its device."""
        self._metric, self._device = metric, torch.device(device)

    def spread(self, images: Sequence[Sequence[Image.Image]]) -> FloatArray:
        """Mean distance over all pairs of images of each prompt: (prompts, seeds ≥ 2) → (prompts,)."""
        return np.array([self._mean_over_pairs(of_prompt) for of_prompt in images])

    def _mean_over_pairs(self, images: Sequence[Image.Image]) -> float:
        tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images]
        first, second = zip(*itertools.combinations(tensors, 2), strict=True)
        with torch.inference_mode(), full_precision(self._device):
            return float(self._metric(torch.stack(first).to(self._device), torch.stack(second).to(self._device)))


def load_lpips(*, device: torch.device | str = "cpu", local_files_only: bool = False) -> Lpips:
    """Load LPIPS; its network's weights (233 MB) are fetched by torchvision.

    Args:
        device: where it computes.
        local_files_only: only if they have been fetched before; so too while the hub is offline.

    Raises:
        ModelError: a package is missing or does not work here, or the weights cannot be had.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # pyright: ignore
        from torchvision.models import AlexNet_Weights  # pyright: ignore
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision built for another torch fails anyhow
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
        raise ModelError(f"LPIPS needs AlexNet's weights, which cannot be fetched: {error}.") from error
