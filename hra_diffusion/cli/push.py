"""``hra-diffusion push``: publish an adapter on the Hugging Face hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hra_diffusion.cli.arguments import parse_settings


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Publish an adapter on the Hugging Face hub in one commit, with a model card."""

    adapter: tyro.conf.Positional[Path]
    """The adapter's folder, or the output folder of its training run."""
    repo_id: tyro.conf.Positional[str]
    """Repository: NAME or USER/NAME. It is created if it does not exist."""
    subfolder: str | None = None
    """Folder in the repository. By default its root."""
    revision: str | None = None
    """Branch of the repository. By default its main branch."""
    private: bool = False
    """Create a new repository as private."""
    license: Annotated[str | None, tyro.conf.arg(aliases=["--licence"])] = None
    """License for the model card: an identifier of the hub, such as mit."""
    images: Annotated[tuple[tuple[Path, str], ...], tyro.conf.arg(aliases=["--pictures"])] = ()
    """Generated images for the model card, with their prompts: FILE PROMPT FILE PROMPT …"""
    commit_message: str = "Upload an HRA adapter"
    """Message of the commit."""


def main(arguments: Sequence[str]) -> None:
    """Publish an adapter and print the commit's URL."""
    config = parse_settings(PushConfig, arguments, prog="hra-diffusion push")

    from hra_diffusion.pipelines import push_hra_weights  # imports torch and diffusers: not for --help

    url = push_hra_weights(
        config.adapter,
        config.repo_id,
        subfolder=config.subfolder,
        revision=config.revision,
        private=config.private or None,
        commit_message=config.commit_message,
        license=config.license,
        images=dict(config.images),
    )
    print(url)
