"""One training loop for the base model's parts: Muon and AdamW, warm-up and cosine, averaged weights, resumable.

Matrices and convolutions inside the networks follow Muon (orthogonalized momentum); embeddings, norms, biases and the
outer layers follow AdamW. Muon was chosen on one short look: after 50 steps of the autoencoder its loss was 0.52, and
that of AdamW alone 0.55. They have not been compared over a whole training.
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
    """One step's record: its number, its loss, the learning rate and the seconds trained so far."""

    step: int
    loss: float
    learning_rate: float
    seconds: float


def fit(
    modules: dict[str, nn.Module],
    loss_of: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    warmup: int = 100,
    average: float = 0.999,
    save_every: int = 250,
) -> Iterator[Progress]:
    """Trains `modules` in place for `steps` steps and leaves them with the averaged weights.

    Continues from `checkpoint` where it exists and writes it every `save_every` steps. `loss_of` draws from the
    generator it is given, which is seeded by the step, so that a resumed run sees what an uninterrupted one would.
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
        loss = loss_of(torch.Generator().manual_seed(step))
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


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.ndim >= 2 and not any(word in name for word in _ADAMW_ONLY)


def _matrix(weight: Tensor) -> Tensor:
    """A convolution (out, in, h, w) as (out, h·w·in): the same memory where the weight is channels last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1) if weight.ndim == 4 else weight


def _optimizers(views: dict[str, nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """AdamW on most, Muon on what `_is_matrix`."""
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
    write_file(path, lambda place: save_file(tensors, place, metadata=metadata))


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
