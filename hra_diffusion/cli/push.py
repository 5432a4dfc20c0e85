"""``hra-diffusion push``: an adapter goes to the Hugging Face hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hra_diffusion.cli.arguments import parse_settings


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Publish an adapter on the Hugging Face hub, in one commit, with a page that says what it is."""

    adapter: tyro.conf.Positional[Path]
    """The adapter's folder, or the output folder of the run that made it."""
    repo_id: tyro.conf.Positional[str]
    """NAME or USER/NAME; the repository is made if need be."""
    subfolder: str | None = None
    """Where to in the repository."""
    revision: str | None = None
    """The branch; the main one by default."""
    private: bool = False
    """Make a new repository private."""
    license: Annotated[str | None, tyro.conf.arg(aliases=["--licence"])] = None
    """An identifier that the hub knows, such as mit."""
    images: tuple[tuple[Path, str], ...] = ()
    """What was drawn with the adapter: FILE PROMPT FILE PROMPT …"""
    commit_message: str = "Upload an HRA adapter"
    """What the history says."""


def main(arguments: Sequence[str]) -> None:
    """Publish and print the commit's address."""
    config = parse_settings(PushConfig, arguments, prog="hra-diffusion push")

    from hra_diffusion.pipelines import push_hra_weights  # imports torch and diffusers: not for --help

    address = push_hra_weights(
        config.adapter,
        config.repo_id,
        subfolder=config.subfolder,
        revision=config.revision,
        private=config.private or None,
        commit_message=config.commit_message,
        license=config.license,
        images=dict(config.images),
    )
    print(address)
