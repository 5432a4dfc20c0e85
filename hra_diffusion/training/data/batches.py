"""Which images, views, noises and timesteps a step sees: a pure function of the seed and the step.

Images of one size share a batch; each size has as many batches as there are images of it, in a shuffled order, so
that every image is seen equally often and none is dropped. A batch has ``batch_size`` examples of each source on each
device; every process draws the batch of all devices and keeps its own rows, so the number of devices does not change
what is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hra_diffusion.training.data.latents import Latent
from hra_diffusion.training.objective.sampling import Sampling
from hra_diffusion.training.rng import endless_shuffle, stream


@dataclass(frozen=True, kw_only=True)
class ConditioningDropout:
    """What the denoiser is not told in a share of the examples, anew in each step."""

    share: float
    values: Mapping[str, Tensor]
    """What stands in its place, by the condition's name: shape (1, …)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A set of images that belongs together: a subject, or its class."""

    name: str
    """Its name in the log."""
    latents: Sequence[Latent]
    conditions: Mapping[str, Tensor]
    """What the denoiser is told about each image, by name: the first dimension counts images."""
    of_crops: Mapping[str, Sequence[Sequence[Tensor] | Tensor]] = field(default_factory=dict)
    """What belongs to single views, by name: for each image a tensor a view."""
    blanks: Sequence[ConditioningDropout] = ()
    """At most one of them befalls an example."""
    weight: float = 1.0
    """Weight of its mean loss in the sum."""
    prior_prediction: bool = False
    """Whether the base model's prediction is to be met, not what leads to the images."""

    @cached_property
    def of_size(self) -> dict[torch.Size, list[int]]:
        """Which latents there are of each size."""
        groups: dict[torch.Size, list[int]] = {}
        for at, latent in enumerate(self.latents):
            groups.setdefault(latent.mean.shape[1:], []).append(at)
        return groups


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of the loss, and which rows belong to which source."""

    inputs: dict[str, Tensor]
    parts: dict[str, slice]
    weights: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a run by index."""

    sources: Sequence[Source]
    """The first decides which size a batch has; the others offer each of its sizes."""
    sampling: Sampling
    """Draws timesteps, and shapes the noise."""
    batch_size: int
    seed: int
    process: int = 0
    processes: int = 1

    def __getitem__(self, index: int) -> Batch:
        """Draw batch number ``index``, counted from 0 over all accumulation steps, on the CPU."""
        size, turn = self._size(index)
        drawn = [self._draw(source, index, size, turn) for source in self.sources]
        rows = [slice(part * self.batch_size, (part + 1) * self.batch_size) for part in range(len(drawn))]
        return Batch(
            inputs={name: torch.cat([inputs[name] for inputs in drawn]) for name in drawn[0]},
            parts={source.name: row for source, row in zip(self.sources, rows, strict=True)},
            weights={source.name: source.weight for source in self.sources},
        )

    @cached_property
    def _masked(self) -> bool:
        """Whether any image has places that count less."""
        return any(latent.weight is not None for source in self.sources for latent in source.latents)

    @property
    def _taught(self) -> bool:
        """Whether the base model teaches any source."""
        return any(source.prior_prediction for source in self.sources)

    @cached_property
    def _sizes(self) -> list[torch.Size]:
        """Return the size of each image that decides one."""
        return [latent.mean.shape[1:] for latent in self.sources[0].latents]

    def _size(self, index: int) -> tuple[torch.Size, int]:
        """Return the size of a batch, and how many batches of that size came before."""
        of_size = self.sources[0].of_size
        if len(of_size) == 1:
            return next(iter(of_size)), index
        cycle, position = divmod(index, len(self._sizes))
        order = endless_shuffle(self.seed, "order of sizes", len(self._sizes), index - position, position + 1)
        *before, size = (self._sizes[at] for at in order)
        return size, cycle * len(of_size[size]) + before.count(size)

    def _draw(self, source: Source, index: int, size: torch.Size, turn: int) -> dict[str, Tensor]:
        count = self.batch_size * self.processes
        members = source.of_size[size]
        order = endless_shuffle(self.seed, f"order of {source.name}", len(members), turn * count, count)
        picks = [members[at] for at in order]
        rng = stream(self.seed, f"batch of {source.name}", index)
        encoding_noise, noise = torch.randn((2, count, *size), generator=rng)
        views = torch.rand(count, generator=rng)
        timesteps = self.sampling.timesteps(count, rng)
        noises = self.sampling.noises(noise, rng)
        own = slice(self.process * self.batch_size, (self.process + 1) * self.batch_size)
        chosen = [source.latents[pick] for pick in picks[own]]
        shown = [int(view * len(latent.mean)) for latent, view in zip(chosen, views[own], strict=True)]
        latents = [
            latent.sample(view, eps) for latent, view, eps in zip(chosen, shown, encoding_noise[own], strict=True)
        ]
        weights = [
            torch.ones(1, *size[1:]) if latent.weight is None else latent.weight[view]
            for latent, view in zip(chosen, shown, strict=True)
        ]
        seen = list(zip(picks[own], shown, strict=True))
        told = {name: condition[picks[own]] for name, condition in source.conditions.items()}
        taught = {"prior_prediction": torch.full((self.batch_size,), source.prior_prediction)} if self._taught else {}
        return (
            ({"weights": torch.stack(weights)} if self._masked else {})
            | taught
            | {
                "latents": torch.stack(latents),
                **{name: each[own] for name, each in noises.items()},
                "timesteps": timesteps[own],
                **self._with_blanks(told, source, torch.rand(count, generator=rng)[own]),
                **{name: torch.stack([each[at][view] for at, view in seen]) for name, each in source.of_crops.items()},
            }
        )

    @staticmethod
    def _with_blanks(told: dict[str, Tensor], source: Source, chance: Tensor) -> dict[str, Tensor]:
        """Leave out what the chance of each example, in [0, 1), says."""
        told, before = dict(told), 0.0
        for blank in source.blanks:
            befallen = (before <= chance) & (chance < before + blank.share)
            before += blank.share
            for name, value in blank.values.items():
                told[name] = torch.where(befallen.view(-1, *[1] * (value.dim() - 1)), value, told[name])
        return told
