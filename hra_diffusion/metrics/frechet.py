"""Fréchet distance of two sets of images: FID (Heusel et al., arXiv 1706.08500), also with other encoders.

A Gaussian is fitted to an encoder's features of either set:

    ‖μ − μ′‖² + tr(Σ + Σ′ − 2 (Σ Σ′)^½)

FID uses the Inception weights of torch-fidelity, as is usual. Distances of different encoders are not comparable. Fewer
images give larger distances, so only equal numbers of images are comparable.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hra_diffusion.errors import ModelError
from hra_diffusion.metrics.bootstrap import FloatArray

_BATCH = 32


def frechet_distance(one: FloatArray, other: FloatArray) -> float:
    """Return the Fréchet distance of Gaussians fitted to features (n ≥ 2, d) and (m ≥ 2, d)."""
    first, second = (np.cov(features, rowvar=False) for features in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    distance = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * common
    return max(0.0, float(distance))  # rounding


class Inception:
    """FID's encoder of images."""

    name = "Inception"

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        """Wrap torch-fidelity's FeatureExtractorInceptionV3 for the features "2048"."""
        self._model, self._device = model, torch.device(device)

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Encode RGB images of one size: (images, 2048)."""
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
        with torch.inference_mode():
            batches = pixels.permute(0, 3, 1, 2).split(_BATCH)
            encoded = [self._model(batch.to(self._device))[0].cpu() for batch in batches]
        return torch.cat(encoded).double().numpy()


def load_inception(device: torch.device | str = "cpu") -> Inception:
    """Load Inception with torch-fidelity, from weights downloaded before.

    Raises:
        ModelError: a package or the weights are missing or unusable.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity  # pyright: ignore
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision for another torch raises any of them
        raise ModelError(
            f"FID needs torch-fidelity and a torchvision that fits torch ({error}): "
            "install the extra hra-diffusion[metrics]."
        ) from error
    weights = Path(torch.hub.get_dir(), "checkpoints", Path(fidelity.URL_INCEPTION_V3).name)
    if not weights.is_file():
        raise ModelError(f"FID needs Inception's weights, of {fidelity.URL_INCEPTION_V3}, which are not at {weights}.")
    try:
        torch.load(weights, weights_only=True)  # refuses pickled code; torch-fidelity would run it
        model = fidelity.FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
        return Inception(model.to(device), device)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"Inception's weights at {weights} cannot be used: {error}") from error
