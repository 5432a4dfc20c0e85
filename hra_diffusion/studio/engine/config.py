"""Command-line options of ``hra-diffusion studio`` and ``app.py``."""

from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.base import BaseConfig, PlacementConfig


@dataclass(frozen=True, kw_only=True)
class StudioConfig(BaseConfig, PlacementConfig):
    """Open the studio: train adapters, compare them and generate images in a browser."""

    base: str = "assets/emoji-sd"
    """The base model: a folder in diffusers' layout or a name on the hub, of Stable Diffusion 1, 2 or XL."""
    folder: Path = Path("outputs/studio")
    """Folder of the studio's images, adapters and training jobs; it writes nowhere else."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 admits other machines."""
    port: int | None = None
    """Port to listen at; the first free one from 7860 on by default."""
    auth: str | None = None
    """USER:PASSWORD required by the page and the API."""
    share: bool = False
    """Open a public address through gradio's servers; set --auth as well."""
    open: bool = False
    """Open the page in the browser."""
    mcp: bool = False
    """Offer the API to language models through MCP (extra mcp)."""
    max_waiting: int = 16
    """Largest number of requests in the queue; further ones are refused."""

    def __post_init__(self) -> None:
        """Raise ConfigError for options out of range."""
        if self.auth is not None and not all(self.auth.partition(":")):
            raise ConfigError("--auth must be USER:PASSWORD, neither of them empty.")
        if self.port is not None and not 1 <= self.port <= 65_535:
            raise ConfigError(f"--port is {self.port}: give a number from 1 to 65535.")
        if self.max_waiting < 1:
            raise ConfigError(f"--max_waiting is {self.max_waiting}: give a number at least 1.")
