"""A list of prompts, one a line, and the request of each line (A1111's "Prompts from file or textbox")."""

from dataclasses import replace
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.requests import MAX_PROMPT, GenerateRequest

MAX_LINES, MAX_IMAGES = 100, 200
_MAX_BYTES = 1_000_000
"""Limit of a file, and of a text in characters."""
_REFERENCE = "{prompt}"
"""Stands for the prompt of the settings, as in a grid."""


def list_requests(request: GenerateRequest, text: str, *, next_seeds: bool = False) -> list[GenerateRequest]:
    """Return the request of each line.

    Args:
        request: the settings; "{prompt}" in a line stands for their prompt.
        text: prompts, one a line; empty lines are left out.
        next_seeds: each line continues with the seed after those of the line before; by default all have the same.

    Raises:
        ConfigError: there are no lines or too many, or a line has A1111's options or is too long.
    """
    if not isinstance(text, str) or len(text) > _MAX_BYTES:
        raise ConfigError(f"The list of prompts has more than {_MAX_BYTES:,} characters, or is no text.")
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    if not 1 <= len(lines) <= MAX_LINES:
        raise ConfigError(f"The list has {len(lines)} prompts: give 1 to {MAX_LINES}, one a line.")
    if len(lines) * request.count > MAX_IMAGES:
        raise ConfigError(
            f"{len(lines)} prompts with {request.count} images each are more than {MAX_IMAGES} images: shorten the "
            "list, or choose a smaller batch."
        )
    for number, line in enumerate(lines, 1):
        if line.startswith("--"):
            raise ConfigError(
                f"Prompt {number} begins with {line[:40]!r}: lines have no options here, all share the settings of "
                "Generate. Remove the options."
            )
        if len(line) + line.count(_REFERENCE) * len(request.prompt) > MAX_PROMPT:
            raise ConfigError(f"Prompt {number} has more than {MAX_PROMPT:,} characters: shorten it.")
    step = request.count if next_seeds else 0
    return [
        replace(request, prompt=line.replace(_REFERENCE, request.prompt), seed=request.seed + index * step)
        for index, line in enumerate(lines)
    ]


def read_prompt_file(path: Path) -> str:
    """Read a file of prompts in UTF-8.

    Raises:
        ConfigError: the file is missing, too large or no text in UTF-8.
    """
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8-sig") if size <= _MAX_BYTES else ""
    except (OSError, ValueError):
        raise ConfigError(f"{path.name[:80]!r} is no text file in UTF-8: choose another.") from None
    if size > _MAX_BYTES:
        raise ConfigError(f"{path.name[:80]} has more than {_MAX_BYTES:,} bytes: shorten the list of prompts.")
    return text
