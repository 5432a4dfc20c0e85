"""The models of the metrics: the judge for the embedded base; CLIP, DINO and LPIPS for photographs.

A model named by the user must load. A default model that cannot be loaded is replaced by a note.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from hra_diffusion.errors import ModelError
from hra_diffusion.metrics.encoders import CLIP, DINO, Clip, Encoder, load_clip, load_dino
from hra_diffusion.metrics.lpips import Lpips, load_lpips
from hra_diffusion.metrics.vocabulary import Vocabulary, read_vocabulary

Model = TypeVar("Model")

_BASE, JUDGE = "emoji-sd", "emoji-clip"


@dataclass(frozen=True, kw_only=True)
class MetricModels:
    """Loaded models, and notes on missing ones."""

    clip: Clip
    vocabulary: Vocabulary | None = None
    """The judge's labels; None for CLIP from the hub."""
    dino: Encoder | None = None
    lpips: Lpips | None = None
    notes: list[str] = field(default_factory=list)


def find_judge(base: str | Path) -> Path | None:
    """Return the folder of a base model's judge: emoji-clip beside emoji-sd; None for other bases."""
    folder = Path(base).resolve()
    return folder.with_name(JUDGE) if folder.name == _BASE else None


def load_judge(folder: str | Path, *, device: torch.device | str = "cpu") -> tuple[Clip, Vocabulary]:
    """Load a judge with its vocabulary.

    Raises:
        ModelError: the folder holds no complete judge.
    """
    vocabulary = read_vocabulary(folder)
    if vocabulary is None:
        raise ModelError(
            f"There is no judge in {folder}: make it with `python -m emoji_world judge`, or name a CLIP with --clip."
        )
    return load_clip(str(folder), device=device), vocabulary


def load_metric_models(
    base: str,
    *,
    clip: str | None = None,
    dino: str | None = None,
    device: torch.device | str = "cpu",
    local_files_only: bool = False,
) -> MetricModels:
    """Load the models for images of a base model.

    Args:
        base: the base model's folder or name.
        clip: folder or name of a CLIP; by default the judge for emoji-sd, else CLIP ViT-L/14.
        dino: folder or name of a DINO; by default none for emoji-sd, else DINO ViT-S/16 if it can be loaded.
        device: device of the models.
        local_files_only: download nothing.

    Raises:
        ModelError: CLIP, or a DINO named by the caller, cannot be loaded.
    """
    judge = find_judge(base)
    notes: list[str] = []
    if clip is None and judge:
        model, vocabulary = load_judge(judge, device=device)
    else:
        name = clip or CLIP
        model = load_clip(name, device=device, local_files_only=local_files_only)
        vocabulary = read_vocabulary(name)

    def load_or_note(load: Callable[[], Model], note: str) -> Model | None:
        try:
            return load()
        except ModelError as error:
            notes.append(f"{note}: {error}")
            return None

    if dino:
        encoder = load_dino(dino, device=device, local_files_only=local_files_only)
    elif judge:
        encoder = None
        notes.append("DINO is not measured, because it is made for photographs; --dino adds one.")
    else:
        encoder = load_or_note(
            lambda: load_dino(device=device, local_files_only=local_files_only), f"{DINO} is not measured"
        )
    lpips = load_or_note(
        lambda: load_lpips(device=device, local_files_only=local_files_only or judge is not None),
        f"Diversity is the distance in {model.name} between images of a prompt, not LPIPS",
    )
    return MetricModels(clip=model, vocabulary=vocabulary, dino=encoder, lpips=lpips, notes=notes)
