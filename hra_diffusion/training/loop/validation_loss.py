"""The loss on held-out images: the same images, noise and timesteps each time, so that only the weights differ.

Each image is taken at four timesteps, evenly spaced from no noise to noise alone (by a flow's shift, evenly spaced
before it). Its noise depends on the seed and the image alone. Random numbers of training are not touched.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.training.data.batches import Source
from hra_diffusion.training.families.family import distinct_prompts
from hra_diffusion.training.loop.copies import to_device
from hra_diffusion.training.objective.noising import NoiseProcess
from hra_diffusion.training.rng import stream

POSITIONS = (0.125, 0.375, 0.625, 0.875)
"""Positions of the timesteps between no noise (0) and noise alone (1)."""


class ValidationLoss:
    """The mean loss of a source of held-out images."""

    def __init__(
        self,
        source: Source,
        process: NoiseProcess,
        *,
        batch_size: int,
        seed: int,
        token_names: Sequence[str] = (),
    ) -> None:
        """Make the inputs of the loss.

        Args:
            source: the held-out images; of each, the first crop is taken.
            process: the noise process of the model.
            batch_size: examples in a call of the loss.
            seed: seed of the noise.
            token_names: the conditions that are token ids, if text encoders train.
        """
        assert source.validate_every
        self.every = source.validate_every
        self._batches: list[dict[str, Tensor]] = []
        for size, images in source.indices_by_size.items():
            rows = [(image, position) for image in images for position in POSITIONS]
            for start in range(0, len(rows), batch_size):
                inputs = _inputs(source, process, rows[start : start + batch_size], size, seed)
                tokens = {name: inputs[name] for name in token_names}
                self._batches.append(inputs | (distinct_prompts(tokens) if tokens else {}))
        self._examples = sum(len(batch["timesteps"]) for batch in self._batches)

    @torch.no_grad()
    def mean_loss(self, loss: Any, device: torch.device) -> Tensor:
        """Return the mean of a loss over all examples, without its penalty; does not wait for the device."""
        sums = [loss(**to_device(batch, device))[0].sum() for batch in self._batches]
        return torch.stack(sums).sum() / self._examples


def _inputs(
    source: Source, process: NoiseProcess, rows: Sequence[tuple[int, float]], size: torch.Size, seed: int
) -> dict[str, Tensor]:
    """Return the loss's inputs for images of one size, each at a position."""
    images = [image for image, _ in rows]
    latents = [source.latents[image] for image in images]
    positions = torch.tensor([position for _, position in rows])
    numbers = [image * len(POSITIONS) + POSITIONS.index(position) for image, position in rows]
    noises = [torch.randn(size, generator=stream(seed, "noise of validation", number)) for number in numbers]
    condition_rows = source.rows_of(images)
    crop_conditions = source.crop_conditions.items()
    inputs = {
        "latents": torch.stack([latent.mean[0] for latent in latents]),
        "noise": torch.stack(noises),
        "timesteps": process.timesteps(positions, size),
        **{name: values[condition_rows] for name, values in source.conditions.items()},
        **{name: torch.stack([values[image][0] for image in images]) for name, values in crop_conditions},
    }
    if any(latent.weight is not None for latent in source.latents):
        inputs["weights"] = torch.stack([latent.loss_weight(0) for latent in latents])
    return inputs
