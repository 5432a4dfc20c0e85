"""Restored requests: the settings of a PNG or a preset, limited to a base model and the library."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.generation.schedulers import check_scheduler
from hra_diffusion.studio.engine.images.metadata import read_model, read_png_settings
from hra_diffusion.studio.engine.models.base import Base
from hra_diffusion.studio.engine.models.bases import Bases


def restore_png(
    path: Path, bases: Bases, library: Library, default: GenerateRequest
) -> tuple[GenerateRequest, list[str]]:
    """Read the request of a PNG, limited to its base model and the library.

    Args:
        path: a PNG.
        bases: the models to choose from; the default one takes the place of a missing one.
        library: the available adapters.
        default: the request for missing and invalid settings.

    Returns:
        The request, and a sentence for every setting left out or changed.

    Raises:
        ImageError: the file is no PNG, or has no settings.
        ModelError: the files of its model are incomplete.
    """
    return _restore_for_base("image", read_png_settings(path), read_model(path), bases, library, default)


def restore_preset(
    settings: Mapping[str, Any], bases: Bases, library: Library, default: GenerateRequest
) -> tuple[GenerateRequest, list[str]]:
    """Make the request of a preset, limited to its base model and the library: see `restore_png`."""
    return _restore_for_base("preset", settings, settings.get("base"), bases, library, default)


def _restore_for_base(
    kind: str,
    settings: Mapping[str, Any],
    name: str | None,
    bases: Bases,
    library: Library,
    default: GenerateRequest,
) -> tuple[GenerateRequest, list[str]]:
    base, changes = bases.find(name), list[str]()
    if name and name != base.name:
        changes.append(f"The {kind} is of the base model {name!r}, which is not here: {base.name} takes its place.")
    request, others = restore_settings(settings, base, library, default)
    return replace(request, base=None if base == bases.default else base.name), [*changes, *others]


def restore_settings(
    settings: Mapping[str, Any], base: Base, library: Library, default: GenerateRequest
) -> tuple[GenerateRequest, list[str]]:
    """Make a request of settings, limited to a base model and the library: see `restore_png`."""
    values, changes = dict(settings), []
    if "prompt_syntax" not in values and base.text_encoders > 1:  # A1111, which skips no layers of SDXL
        values.pop("clip_skip", None)
    for name in [field.name for field in fields(GenerateRequest) if field.name in values]:
        try:
            GenerateRequest.from_json({name: values[name]})
            if name == "scheduler":
                check_scheduler(values[name], base.schedulers)
        except ConfigError as error:
            changes.append(f"Left out: {error}")
            del values[name]
    request = GenerateRequest.from_json(default.to_json() | values)
    for name in ("width", "height"):
        side = max(1, round(getattr(request, name) / base.multiple)) * base.multiple
        if side != getattr(request, name):
            changes.append(f"{name} is {getattr(request, name)}: taken as {side}, the nearest size of this model.")
            request = replace(request, **{name: side})
    entries = {use: entry for use in request.adapters if (entry := library.find(use.name))}
    known = tuple(use for use in request.adapters if use in entries)
    changes += [f"{use.name!r} is not in the library: left out." for use in request.adapters if use not in known]
    has_control = any(entry.annotator for entry in entries.values())
    return replace(request, adapters=known, condition=request.condition if has_control else None), changes
