"""Batches of a run: images, crops, noises and timesteps as a pure function of the seed and the step.

Images of one size share a batch. Each size has as many batches as it has images, in a shuffled order, so that every
image is trained on equally often and none is dropped. A batch has ``batch_size`` examples of each source on each
device. Every process samples the batch of all devices and keeps its own rows, so the number of devices does not change
the samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from hra_diffusion.training.data.latents import Latent
from hra_diffusion.training.families.family import distinct_prompts
from hra_diffusion.training.objective.sampling import Sampling
from hra_diffusion.training.rng import endless_shuffle, stream


@dataclass(frozen=True, kw_only=True)
class ConditioningDropout:
    """Conditions to leave out of a share of the examples, sampled anew in each step."""

    share: float
    """From 0 to 1."""
    values: Mapping[str, Tensor]
    """The replacement of each condition, by its name: shape (1, …)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A set of images with their conditions: the subject's, the class's, or pairs."""

    name: str
    """Its name in the log and in the names of its random streams."""
    latents: Sequence[Latent]
    conditions: Mapping[str, Tensor]
    """Conditions by name, one row an image: shape (images, …); see `condition_rows`."""
    condition_rows: Sequence[Sequence[int]] = ()
    """For each image its rows of the conditions, one for each order of its caption; by default the image's number."""
    crop_conditions: Mapping[str, Sequence[Sequence[Tensor] | Tensor]] = field(default_factory=dict)
    """Conditions of single crops, by name: for each image one tensor a crop."""
    dropouts: Sequence[ConditioningDropout] = ()
    """At most one of them applies to an example; their shares add up to at most 1."""
    weight: float = 1.0
    """Weight of the source's mean loss in the sum."""
    prior_prediction: bool = False
    """Whether the base model's prediction is the target, instead of the noise or velocity."""
    validate_every: int | None = None
    """Steps between measurements of the validation loss on these held-out images; None for training images."""

    def rows_of(self, images: Sequence[int], uniform: Sequence[float] | None = None) -> list[int]:
        """Return a row of the conditions for each of some images.

        Args:
            images: indices of the images.
            uniform: a random number in [0, 1) for each, which chooses one of the image's rows; the first by default.
        """
        if not self.condition_rows:
            return list(images)
        chosen = zip((self.condition_rows[image] for image in images), uniform or [0.0] * len(images), strict=True)
        return [rows[int(number * len(rows))] for rows, number in chosen]

    @cached_property
    def indices_by_size(self) -> dict[torch.Size, list[int]]:
        """Indices of the latents of each size."""
        groups: dict[torch.Size, list[int]] = {}
        for index, latent in enumerate(self.latents):
            groups.setdefault(latent.mean.shape[1:], []).append(index)
        return groups


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of the loss, with the rows and the weight of each source."""

    inputs: dict[str, Tensor]
    parts: dict[str, slice]
    weights: dict[str, float]

    def mean_losses(self, losses: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of each source, for one loss per example."""
        return {name: losses[rows].mean() for name, rows in self.parts.items()}

    def weighted_sum(self, means: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the sources' mean losses."""
        return cast(Tensor, sum(self.weights[name] * mean for name, mean in means.items()))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a run by index."""

    sources: Sequence[Source]
    """The first decides the size of a batch; the others offer each of its sizes."""
    sampling: Sampling
    """Samples timesteps, and shapes the noise."""
    batch_size: int
    seed: int
    token_names: Sequence[str] = ()
    """The conditions that are token ids, if text encoders train: each distinct prompt of a batch is encoded once."""
    process: int = 0
    processes: int = 1

    def __getitem__(self, index: int) -> Batch:
        """Return batch number ``index``, counted from 0 over all accumulation steps, on the CPU."""
        size, number = self._size(index)
        samples = [self._sample(source, index, size, number) for source in self.sources]
        rows = [slice(part * self.batch_size, (part + 1) * self.batch_size) for part in range(len(samples))]
        inputs = {name: torch.cat([inputs[name] for inputs in samples]) for name in samples[0]}
        if self._has_prior_prediction:
            parts = zip(self.sources, rows, strict=True)
            chosen = [row for source, part in parts if source.prior_prediction for row in range(part.start, part.stop)]
            inputs["prior_rows"] = torch.tensor(chosen)
        if self.token_names:
            tokens = {name: inputs[name] for name in self.token_names}
            inputs |= distinct_prompts(tokens)
            if self._has_prior_prediction:
                of_prior = distinct_prompts({name: ids[chosen] for name, ids in tokens.items()})
                inputs |= {f"prior_{name}": indices for name, indices in of_prior.items()}
        return Batch(
            inputs=inputs,
            parts={source.name: row for source, row in zip(self.sources, rows, strict=True)},
            weights={source.name: source.weight for source in self.sources},
        )

    @cached_property
    def _has_weights(self) -> bool:
        """Whether any image has a mask."""
        return any(latent.weight is not None for source in self.sources for latent in source.latents)

    @property
    def _has_prior_prediction(self) -> bool:
        """Whether the base model's prediction is the target of any source."""
        return any(source.prior_prediction for source in self.sources)

    @cached_property
    def _sizes(self) -> list[torch.Size]:
        """The latent size of each image of the first source."""
        return [latent.mean.shape[1:] for latent in self.sources[0].latents]

    def _size(self, index: int) -> tuple[torch.Size, int]:
        """Return the size of a batch, and the number of earlier batches of that size."""
        by_size = self.sources[0].indices_by_size
        if len(by_size) == 1:
            return next(iter(by_size)), index
        cycle, position = divmod(index, len(self._sizes))
        order = endless_shuffle(self.seed, "order of sizes", len(self._sizes), index - position, position + 1)
        *before, size = (self._sizes[image] for image in order)
        return size, cycle * len(by_size[size]) + before.count(size)

    def _sample(self, source: Source, index: int, size: torch.Size, number: int) -> dict[str, Tensor]:
        """Sample the rows of one source; the order of the calls on ``rng`` decides the numbers."""
        count = self.batch_size * self.processes
        rows = slice(self.process * self.batch_size, (self.process + 1) * self.batch_size)
        members = source.indices_by_size[size]
        order = endless_shuffle(self.seed, f"order of {source.name}", len(members), number * count, count)
        images = [members[position] for position in order][rows]
        latents = [source.latents[image] for image in images]
        rng = stream(self.seed, f"batch of {source.name}", index)
        encoding_noise, noise = torch.randn((2, count, *size), generator=rng)
        positions = torch.rand(count, generator=rng)[rows]
        timesteps = self.sampling.sample_timesteps(count, rng, size)
        noises = self.sampling.noise_inputs(noise, rng)
        dropout = torch.rand(count, generator=rng)[rows]
        orders = torch.rand(count, generator=rng)[rows].tolist() if source.condition_rows else None
        condition_rows = source.rows_of(images, orders)
        crops = [int(position * len(latent.mean)) for latent, position in zip(latents, positions, strict=True)]
        inputs: dict[str, Tensor] = {}
        if self._has_weights:
            weights = [latent.loss_weight(crop) for latent, crop in zip(latents, crops, strict=True)]
            inputs["weights"] = torch.stack(weights)
        chosen = zip(latents, crops, encoding_noise[rows], strict=True)
        inputs["latents"] = torch.stack([latent.sample(crop, eps) for latent, crop, eps in chosen])
        inputs |= {name: values[rows] for name, values in noises.items()}
        inputs["timesteps"] = timesteps[rows]
        conditions = {name: values[condition_rows] for name, values in source.conditions.items()}
        inputs |= _with_dropout(conditions, source, dropout)
        for name, values in source.crop_conditions.items():
            inputs[name] = torch.stack([values[image][crop] for image, crop in zip(images, crops, strict=True)])
        return inputs


def _with_dropout(conditions: dict[str, Tensor], source: Source, uniform: Tensor) -> dict[str, Tensor]:
    """Replace the dropped conditions of each example, chosen by its uniform random number in [0, 1)."""
    conditions, before = dict(conditions), 0.0
    for dropout in source.dropouts:
        dropped = (before <= uniform) & (uniform < before + dropout.share)
        before += dropout.share
        for name, value in dropout.values.items():
            conditions[name] = torch.where(dropped.view(-1, *[1] * (value.dim() - 1)), value, conditions[name])
    return conditions
