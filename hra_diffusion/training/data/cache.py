"""Tensors that take long to make, kept on the disk under a digest of everything they were made from.

Whoever asks for tensors with the same ingredients gets the same tensors; when an image, a setting or a weight changed,
so did the digest, and nothing stale is served. Files may be removed at any time, also while a run uses them.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import read_tensors, write_together

Tensors = dict[str, Tensor]

logger = logging.getLogger(__name__)

VERSION = 1
"""An ingredient of all: to be raised when the same ingredients come to give other tensors."""


@dataclass(frozen=True)
class Cache:
    """A folder of such tensors; without a folder, nothing is kept."""

    folder: Path | None = None

    def fetch(self, kind: str, ingredients: tuple[Any, ...], make: Callable[[], Tensors]) -> Tensors:
        """Return the tensors that ``make`` would make.

        Args:
            kind: what they are, a sub-folder.
            ingredients: everything that they depend on, as values whose ``repr`` tells them apart.
            make: makes them, on the CPU.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            return make()
        digest = hashlib.blake2b(repr((VERSION, *ingredients)).encode(), digest_size=20).hexdigest()
        path = self.folder / kind / f"{digest}.safetensors"
        if path.exists():
            try:
                return read_tensors(path)
            except AdapterFileError as error:
                logger.warning("%s It is made anew.", error)
        made = make()
        write_together({path: save({name: tensor.contiguous() for name, tensor in made.items()})})
        return made

    def fingerprint(self, model: nn.Module) -> str:
        """Digest a model: its class, its config, all of its weights and where they are; empty without a folder."""
        if self.folder is None:
            return ""
        digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=20)
        config: Any = getattr(model, "config", {})
        settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        known = sorted((name, value) for name, value in settings.items() if not name.startswith("_"))
        digest.update(repr(known).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
