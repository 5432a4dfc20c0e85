"""Which models measure: the embedded judge for the embedded base; CLIP, DINO and LPIPS for photographs.

What was asked for by name must be there; what is measured by default gives way to a note that names it.
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

Instrument = TypeVar("Instrument")

_BASE, JUDGE = "emoji-sd", "emoji-clip"


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """Loaded models, and notes on what is not there."""

    clip: Clip
    vocabulary: Vocabulary | None = None
    """What the judge can tell; None for CLIP from the hub."""
    dino: Encoder | None = None
    lpips: Lpips | None = None
    notes: list[str] = field(default_factory=list)


def judge_beside(base: str | Path) -> Path | None:
    """The folder of the judge that belongs to a base model: emoji-clip beside emoji-sd; None for other bases."""
    folder = Path(base).resolve()
    return folder.with_name(JUDGE) if folder.name == _BASE else None


def load_judge(folder: str | Path, *, device: torch.device | str = "cpu") -> tuple[Clip, Vocabulary]:
    """Load a judge with its vocabulary.

    Raises:
        ModelError: there is none, or not a whole one.
    """
    vocabulary = read_vocabulary(folder)
    if vocabulary is None:
        raise ModelError(
            f"There is no judge in {folder}: make it with `python -m emoji_world judge`, or name a CLIP with --clip."
        )
    return load_clip(str(folder), device=device), vocabulary


def load_instruments(
    base: str,
    *,
    clip: str | None = None,
    dino: str | None = None,
    device: torch.device | str = "cpu",
    local_files_only: bool = False,
) -> Instruments:
    """Load what measures images of a base model.

    Args:
        base: the base model's folder or name.
        clip: a CLIP by folder or name; by default the judge for emoji-sd, else CLIP ViT-L/14.
        dino: a DINO by folder or name; by default none for emoji-sd, else DINO ViT-S/16 where it can be had.
        device: where they compute.
        local_files_only: fetch nothing.

    Raises:
        ModelError: CLIP, or a DINO that was named, cannot be had.
    """
    judge = judge_beside(base)
    notes: list[str] = []
    if clip is None and judge:
        model, vocabulary = load_judge(judge, device=device)
    else:
        name = clip or CLIP
        model = load_clip(name, device=device, local_files_only=local_files_only)
        vocabulary = read_vocabulary(name)

    def attempt(load: Callable[[], Instrument], otherwise: str) -> Instrument | None:
        try:
            return load()
        except ModelError as error:
            notes.append(f"{otherwise}: {error}")
            return None

    if dino:
        encoder = load_dino(dino, device=device, local_files_only=local_files_only)
    elif judge:
        encoder = None
        notes.append("DINO is not measured: it was made for photographs; --dino names one all the same.")
    else:
        encoder = attempt(
            lambda: load_dino(device=device, local_files_only=local_files_only), f"{DINO} is not measured"
        )
    lpips = attempt(
        lambda: load_lpips(device=device, local_files_only=local_files_only or judge is not None),
        f"Diversity is the distance in {model.name} between images of a prompt, not LPIPS",
    )
    return Instruments(clip=model, vocabulary=vocabulary, dino=encoder, lpips=lpips, notes=notes)
