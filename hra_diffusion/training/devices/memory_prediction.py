"""Predicted memory of a run on a GPU, by phase: the models compute on tensors without data, whose bytes are counted.

The numbers are bytes of tensors. A GPU's driver (0.3 to 0.6 GB), the workspaces of its libraries and the gaps between
tensors come on top.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeCopyMode, FakeTensor, FakeTensorMode

from hra_diffusion.pipelines.components import models
from hra_diffusion.pipelines.kinds import kind_of
from hra_diffusion.training.data.latents import ENCODER_PIXELS
from hra_diffusion.training.devices.block_swap import swapped_weights
from hra_diffusion.training.devices.live_bytes import LiveBytes
from hra_diffusion.training.families import Conditioning, Denoiser, Family, PromptPart

_OF_THE_LOSS = ("latents", "noise", "timesteps", "weights", "added_noise", "prior_rows")
"""Inputs of the loss that are no conditions of the denoiser."""

_INDICES = ("distinct_prompts", "prompt_index", "prior_distinct_prompts", "prior_prompt_index")
"""Indices of the prompts of a batch, which has other prompts here."""


@dataclass(frozen=True, kw_only=True)
class PhaseMemory:
    """The memory of one component in one phase."""

    phase: str
    """encode, train or validate."""
    component: str
    weights: int
    """Bytes of its weights on the device; in training with the optimizer's state."""
    peak: int
    """Largest number of bytes at once, weights included."""
    launches: int
    """Operations: of a batch of crops, a prompt, a forward and backward pass, a denoising step, an image."""


def predict_memory(
    denoiser: nn.Module,
    family: Family,
    inputs: Mapping[str, Tensor],
    *,
    precision: torch.dtype = torch.float32,
    copies_of_trained_weights: int = 3,
    images_at_once: int = 4,
) -> list[PhaseMemory]:
    """Predict the memory of a run on a GPU, where models are on the device only while a phase calls them.

    Args:
        denoiser: the task's denoiser, with adapters; it may be without data already.
        family: the model that the denoiser belongs to.
        inputs: a batch of the loss.
        precision: the precision of autocast.
        copies_of_trained_weights: their gradients and the optimizer's state: 3 for Adam.
        images_at_once: images that are generated together; each is decoded alone.
    """
    weight = next(denoiser.parameters())
    if isinstance(weight.data, FakeTensor):
        mode = weight.data.fake_mode
    else:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(mode):
            denoiser, family = copy.deepcopy((denoiser, family))
    distinct = distinct_prompts(denoiser, family, inputs)
    with mode:
        if precision is not torch.float32:
            _normalize_in_float32([denoiser, *models(family.pipe).values()])
        phases = Phases.of_batch(denoiser, family, inputs, precision, distinct)
        return [
            *phases.encode_phase(),
            phases.train_phase(copies_of_trained_weights),
            *phases.validate_phase(images_at_once * (1 if kind_of(family.pipe).distilled_guidance else 2)),
        ]


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The phases of a run, on models and a batch with or without data."""

    denoiser: Any
    family: Family
    latents: Tensor
    conditions: Conditioning
    distinct_prompts: int
    """Prompts of the batch if the text encoders train, else 0."""
    precision: torch.dtype

    @classmethod
    def of_batch(
        cls, denoiser: nn.Module, family: Family, inputs: Mapping[str, Tensor], precision: torch.dtype, distinct: int
    ) -> "Phases":
        """Return the phases for batches of the shapes of one, on the denoiser's device; see `predict_memory`."""
        device = next(denoiser.parameters()).device
        return cls(
            denoiser=denoiser,
            family=family,
            latents=torch.zeros(inputs["latents"].shape, device=device),
            conditions={
                name: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
                for name, tensor in inputs.items()
                if name not in (*_OF_THE_LOSS, *_INDICES)
            },
            distinct_prompts=distinct,
            precision=precision,
        )

    def encode_phase(self) -> Iterator[PhaseMemory]:
        """Yield the memory to encode a batch of crops, and prompts with each frozen text encoder."""
        vae = self.family.pipe.vae
        height, width = (side * self.family.pixels_per_latent for side in self.latents.shape[2:])
        crops = torch.empty(max(1, ENCODER_PIXELS // (height * width)), 3, height, width, device=vae.device)
        yield self._measure("encode", "vae", [vae], lambda: self.family.latent_space.encode_images(crops))
        yield from self._encode_prompts("encode", text_encoder_trains=self.distinct_prompts > 0)

    def train_phase(self, copies: int) -> PhaseMemory:
        """Return the memory of a step; `copies` is that of `predict_memory`'s `copies_of_trained_weights`."""
        trained = [weight for weight in self.denoiser.parameters() if weight.requires_grad]
        state = [torch.empty_like(weight) for weight in trained for _ in range(copies - 1)]  # gradients are computed
        self.denoiser.text_encoder_trains = False  # encoded here: the number of distinct prompts is known

        def step() -> None:
            timesteps = torch.zeros(len(self.latents), dtype=torch.long, device=self.latents.device)
            with torch.enable_grad():
                prediction = self.denoiser(self.latents, timesteps, self._embedded(len(self.latents)))
                (prediction.float() - self.latents).square().mean().backward()

        return self._measure("train", self.family.denoiser_name, [self.denoiser], step, state)

    def validate_phase(self, rows: int) -> Iterator[PhaseMemory]:
        """Yield the memory of a denoising step of a number of rows, and to decode an image."""
        latent_space, latent = self.family.latent_space, self.latents[:1]
        yield from self._encode_prompts("validate", text_encoder_trains=False)
        conditions = self._embedded(rows)
        noisy = latent.to(self.family.model.dtype).expand(rows, -1, -1, -1)
        timesteps = torch.zeros(rows, dtype=torch.long, device=latent.device)
        model = self.family.model
        yield self._measure(
            "validate", self.family.denoiser_name, [model], lambda: self.family.predict(noisy, timesteps, conditions)
        )
        yield self._measure("validate", "vae", [latent_space.vae], lambda: latent_space.decode_latents(latent))

    def _encode_prompts(self, phase: str, *, text_encoder_trains: bool) -> Iterator[PhaseMemory]:
        names = {model: name for name, model in models(self.family.pipe).items()}
        for part in self.family.prompt_parts(text_encoder_trains):
            if part.text_encoders:
                name = ", ".join(names[encoder] for encoder in part.text_encoders)
                yield self._measure(phase, name, part.text_encoders, partial(_encode_empty_prompt, part))

    def _embedded(self, rows: int) -> Conditioning:
        """Return the conditions of a number of examples, with embeddings of their prompts."""
        conditions = {name: tensor[:1].expand(rows, *tensor.shape[1:]) for name, tensor in self.conditions.items()}
        if not self.distinct_prompts:
            return conditions
        tokens = {name: self.conditions[name][: self.distinct_prompts] for name in self.family.text_encoder_names}
        embeddings = self.family.encode_tokens(tokens)
        chosen = torch.zeros(rows, dtype=torch.long, device=self.latents.device)
        return conditions | {name: embedding[chosen] for name, embedding in embeddings.items()}

    def _measure(
        self,
        phase: str,
        component: str,
        models: Sequence[nn.Module],
        compute: Callable[[], object],
        state: Iterable[Tensor] = (),
    ) -> PhaseMemory:
        live = LiveBytes()
        live.exclude(weight for model in models for weight in swapped_weights(model))
        weights = live.include([*state, *(tensor for model in models for tensor in _on_the_device(model))])
        half = self.precision is not torch.float32
        autocast = torch.autocast(self.latents.device.type, self.precision) if half else nullcontext()
        with live, torch.no_grad(), autocast:
            compute()
        return PhaseMemory(phase=phase, component=component, weights=weights, peak=live.peak, launches=live.launches)


def _encode_empty_prompt(part: PromptPart) -> None:
    """Encode an empty prompt; its number of tokens, which is unknown without data, matters to no text encoder."""
    with suppress(DynamicOutputShapeException):
        part.encode([""])


def _normalize_in_float32(models: Iterable[nn.Module]) -> None:
    """Let models compute normalizations in float32, as a GPU does under autocast; a CPU keeps their precision."""
    for model in models:
        for norm in model.modules():
            if isinstance(norm, (nn.LayerNorm, nn.GroupNorm)):
                for name, weight in norm._parameters.items():
                    norm._parameters[name] = None if weight is None else nn.Parameter(weight.float(), False)
                norm.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))


def _on_the_device(model: nn.Module) -> list[Tensor]:
    """Return a model's parameters and buffers, without those of swapped blocks."""
    swapped = set(swapped_weights(model))
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor not in swapped]


def distinct_prompts(denoiser: nn.Module, family: Family, inputs: Mapping[str, Tensor]) -> int:
    """Return the number of distinct prompts in a batch of token ids, all if the ids have no data.

    0 if the text encoders do not train.
    """
    if not (isinstance(denoiser, Denoiser) and denoiser.text_encoder_trains):
        return 0
    tokens = torch.cat([inputs[name] for name in family.text_encoder_names], 1)
    return len(tokens if isinstance(tokens, FakeTensor) else tokens.unique(dim=0))
