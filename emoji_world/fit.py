"""The training loop of the base model's parts: Muon and AdamW, warm-up and cosine, averaged weights, resumable.

Muon (orthogonalized momentum) trains matrices and convolutions inside the networks; AdamW trains embeddings, norms,
biases and the outer layers. One short comparison decided for Muon: after 50 steps of the autoencoder the loss was 0.52
with Muon and 0.55 with AdamW alone. No full training compares them.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from emoji_world.muon import Muon
from hra_diffusion.formats.files import write_file

_ADAMW_ONLY = ("embed", "conv_in", "conv_out", "position", "time_emb")


class Progress(NamedTuple):
    """The record of one step: number, loss, learning rate and seconds of training so far."""

    step: int
    loss: float
    learning_rate: float
    seconds: float


def fit(
    modules: dict[str, nn.Module],
    compute_loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    warmup: int = 100,
    average: float = 0.999,
    save_every: int = 250,
) -> Iterator[Progress]:
    """Train `modules` in place for `steps` steps; at the end they hold the averaged weights.

    Resumes from `checkpoint` if it exists and writes it every `save_every` steps. `compute_loss` takes its random
    numbers from a generator that the step seeds: a resumed run equals an uninterrupted one.
    """
    weights = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}
    averaged = {name: p.detach().clone() for name, p in weights.items()}
    views = {name: nn.Parameter(_matrix(p.data) if _is_matrix(name, p) else p.data) for name, p in weights.items()}
    assert all(view.data_ptr() == weights[name].data_ptr() for name, view in views.items()), "use channels-last modules"
    optimizers = _optimizers(views, learning_rate)
    first, seconds = _load(checkpoint, weights, averaged, optimizers)
    began = time.monotonic() - seconds
    for step in range(first, steps):
        rate = learning_rate * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * _cosine(step / steps))
        loss = compute_loss(torch.Generator().manual_seed(step))
        loss.backward()
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for name, p in weights.items():
            assert p.grad is not None
            views[name].grad = _matrix(p.grad) if _is_matrix(name, p) else p.grad
            p.grad = None
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        decay = min(average, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(averaged.values()), [p.detach() for p in weights.values()], 1 - decay)
        yield Progress(step + 1, loss.item(), rate, time.monotonic() - began)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(checkpoint, step + 1, time.monotonic() - began, weights, averaged, optimizers)
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(averaged[name])


def _cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.ndim >= 2 and not any(word in name for word in _ADAMW_ONLY)


def _matrix(weight: Tensor) -> Tensor:
    """Return a convolution (out, in, h, w) as (out, h·w·in): a view if the weight is channels last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1) if weight.ndim == 4 else weight


def _optimizers(views: dict[str, nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Return AdamW over most weights and Muon over the matrices."""
    matrices = [view for name, view in views.items() if _is_matrix(name, view)]
    rest = [view for name, view in views.items() if not _is_matrix(name, view)]
    return [torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0), Muon(matrices, lr=rate)]


def _save(
    path: Path,
    step: int,
    seconds: float,
    weights: dict[str, Tensor],
    averaged: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    tensors = {f"weights.{n}": p.detach().contiguous() for n, p in weights.items()}
    tensors |= {f"averaged.{n}": p.contiguous() for n, p in averaged.items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{number}.{key}": value.contiguous() for key, value in state.items()}
    metadata = {"step": str(step), "seconds": str(seconds)}
    write_file(path, lambda file: save_file(tensors, file, metadata=metadata))


def _load(
    path: Path, weights: dict[str, Tensor], averaged: dict[str, Tensor], optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    with safe_open(path, "pt") as file, torch.no_grad():
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            kind, _, name = key.partition(".")
            if kind == "optimizer":
                index, number, field = name.split(".")
                states[int(index)].setdefault(int(number), {})[field] = file.get_tensor(key)
            else:
                (weights if kind == "weights" else averaged)[name].copy_(file.get_tensor(key))
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(file.metadata()["step"]), float(file.metadata().get("seconds", 0))
