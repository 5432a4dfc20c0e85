"""Command-line options of ``hra-diffusion studio`` and ``app.py``."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.base import BaseConfig, PlacementConfig

AUTH_VARIABLE = "HRA_STUDIO_AUTH"
"""Environment variable with USER:PASSWORD, which process lists do not show."""


@dataclass(frozen=True, kw_only=True)
class StudioConfig(BaseConfig, PlacementConfig):
    """Open the studio: train adapters, compare them and generate images in a browser."""

    base: tuple[str, ...] = ("assets/emoji-sd",)
    """The base model, or several to choose from: folders in diffusers' layout, names on the hub or single
    .safetensors files, of any trainable family. Bases of earlier starts can be chosen, too."""
    folder: Path = Path("outputs/studio")
    """Folder of the studio's images, adapters and training jobs; it writes nowhere else."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 admits other machines."""
    port: int | None = None
    """Port to listen at; the first free one from 7860 on by default."""
    root_path: str | None = None
    """Path or address of the page behind a proxy, such as /studio or https://example.org/studio."""
    auth: str | None = None
    """USER:PASSWORD required by the page, the API and MCP. Process lists show it: better use --auth_file."""
    auth_file: Path | None = None
    """File with USER:PASSWORD; by default that of the environment variable HRA_STUDIO_AUTH."""
    share: bool = False
    """Open a public address through gradio's servers; set --auth as well."""
    open: bool = False
    """Open the page in the browser."""
    mcp: bool = False
    """Offer the API to language models through MCP (extra mcp)."""
    captioner: str | None = None
    """Captioner: model of transformers for image to text, such as BLIP, which captions training images; its folder, or
    its name on the hub, which downloads it."""
    caption_prompt: str | None = None
    """Text input of captioners that need one, such as "<DETAILED_CAPTION>" for Florence-2; others complete it."""
    max_waiting: int = 16
    """Largest number of requests in the queue; further ones are refused."""

    def __post_init__(self) -> None:
        """Raise ConfigError for options out of range; one base may be a text."""
        bases: Any = self.base
        object.__setattr__(self, "base", (bases,) if isinstance(bases, str) else tuple(bases))
        if not self.base:
            raise ConfigError("--base is empty: name a model, or leave it out for the embedded one.")
        if self.auth is not None and self.auth_file is not None:
            raise ConfigError("--auth and --auth_file both give a password: remove one of them.")
        if self.credentials and self.mcp:
            raise ConfigError(
                "--mcp cannot be combined with a password: the interface of language models has none, and would let "
                "everybody in. Remove --mcp, or the password and keep the studio at 127.0.0.1."
            )
        if self.port is not None and not 1 <= self.port <= 65_535:
            raise ConfigError(f"--port is {self.port}: give a number from 1 to 65535.")
        if self.root_path is not None and not re.fullmatch(r"(https?://[^/\s]+)?(/[^/\s?#]+)+", self.root_path):
            raise ConfigError(
                f"--root_path is {self.root_path!r}: give a path such as /studio, or the whole address such as "
                "https://example.org/studio, without a slash at the end."
            )
        if self.max_waiting < 1:
            raise ConfigError(f"--max_waiting is {self.max_waiting}: give a number at least 1.")

    @property
    def credentials(self) -> tuple[str, str] | None:
        """The user and the password, or None without one.

        Raises:
            ConfigError: they are incomplete, or their file cannot be read.
        """
        origin, text = "--auth", self.auth
        if self.auth_file is not None:
            origin = f"--auth_file {self.auth_file}"
            try:
                text = self.auth_file.read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise ConfigError(f"{origin} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
        elif text is None:
            origin, text = AUTH_VARIABLE, os.environ.get(AUTH_VARIABLE)
        if text is None:
            return None
        user, _, password = text.partition(":")
        if not (user and password):
            raise ConfigError(f"{origin} must be USER:PASSWORD, neither of them empty.")
        return user, password
