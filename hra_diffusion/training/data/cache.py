"""A disk cache of encoded images and prompts, by a digest of everything that they depend on.

Equal keys give equal tensors. When an image, a setting or a weight changes, the digest changes, and the tensors are
computed again. Files may be removed at any time, even during a run.
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
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.tensors import read_tensors

Tensors = dict[str, Tensor]

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of every key: raise it when equal keys come to give other tensors."""


@dataclass(frozen=True)
class Cache:
    """A folder of tensors; without a folder, nothing is kept."""

    folder: Path | None = None

    def fetch(self, kind: str, key: tuple[Any, ...], compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors of a key from the cache, or compute and keep them.

        Args:
            kind: the name of the sub-folder, such as latents.
            key: everything that the tensors depend on; different keys must differ in their ``repr``.
            compute: computes the tensors, on the CPU.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            return compute()
        digest = hashlib.blake2b(repr((VERSION, *key)).encode(), digest_size=20).hexdigest()
        path = self.folder / kind / f"{digest}.safetensors"
        if path.exists():
            try:
                return read_tensors(path)
            except AdapterFileError as error:
                logger.warning("%s It is computed again.", error)
        tensors = compute()
        write_together({path: save({name: tensor.contiguous() for name, tensor in tensors.items()})})
        return tensors

    def fingerprint(self, model: nn.Module) -> str:
        """Digest a model: its class, config, weights and device; empty without a folder."""
        if self.folder is None:
            return ""
        digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=20)
        config: Any = getattr(model, "config", {})
        settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        public = sorted((name, value) for name, value in settings.items() if not name.startswith("_"))
        digest.update(repr(public).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
