"""Folders of many adapters: the adapters of a prompt are found by their trigger words, before any is loaded."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.folders import adapters_within, holds_adapter
from hra_diffusion.formats.images import read_image
from hra_diffusion.formats.trigger_words import Phrase, named_in, read_trigger
from hra_diffusion.pipelines.activation import set_hra_adapters
from hra_diffusion.pipelines.binding import Bind
from hra_diffusion.pipelines.loading import load_hra_weights_inactive, name_from_folder
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.regions import RegionMask
from hra_diffusion.pipelines.strengths import StrengthTable
from hra_diffusion.pipelines.trigger_phrases import distinct_phrases
from hra_diffusion.text import shorten

logger = logging.getLogger(__name__)

_OUTSIDE = (0, 0, 0)
"""The color of a mask's transparent pixels."""

Named = dict[Path, tuple[Phrase, ...]]
"""The adapters' folders, with the trigger words of each."""


def adapters_in(folder: Path) -> list[Path]:
    """Return the folders of the adapters in a folder; the folder alone if it is an adapter's or a run's."""
    if holds_adapter(folder) or not folder.is_dir():
        return [folder]
    return adapters_within(folder) or [folder]


def adapters_of_prompt(folders: list[Path], prompt: str) -> Named:
    """Return the adapters whose trigger word is in a prompt; warn of those without a trigger word in their files.

    Raises:
        AdapterFileError: there is no trigger word, or the settings of a run are damaged.
        ConfigError: two adapters have the same trigger word.
    """
    triggers = {path.name: read_trigger(path) for path in folders}
    known = [name for name, trigger in triggers.items() if trigger]
    unknown = [name for name in triggers if name not in known]
    if not known:
        raise AdapterFileError(
            f"No trigger word is in the files of {shorten(unknown)} (instance_prompt and class_prompt in config.toml): "
            "generate without --bind."
        )
    if unknown:
        logger.warning("No trigger word is in the files of %s: they stay inactive.", shorten(unknown))
    phrases = distinct_phrases(known, triggers, {})
    names = named_in(prompt, phrases)
    named = {path: phrases[path.name] for path in folders if path.name in names}
    if not named:
        all_words = shorten(" ".join(choices[0]) for choices in phrases.values())
        logger.warning("The prompt holds no trigger word (%s): the base model generates the image.", all_words)
    return named


def read_masks(given: Sequence[str], named: Named) -> dict[Path, Image.Image]:
    """Read the masks of adapters, ADAPTER=IMAGE with the name of an adapter's folder; return them by folder.

    Raises:
        ConfigError: a text has another form, or names an adapter that the prompt does not.
        ImageError: a file is no image.
    """
    folders = {path.name: path for path in named}
    masks: dict[Path, Image.Image] = {}
    for text in given:
        name, _, file = text.partition("=")
        if name not in folders:
            known = f"those of the prompt are {shorten(folders)}" if folders else "the prompt holds no trigger word"
            raise ConfigError(f"--masks has {text!r}: write ADAPTER=IMAGE with the name of an adapter; {known}.")
        masks[folders[name]] = read_image(Path(file), _OUTSIDE)
    if masks and (missing := [name for name, path in folders.items() if path not in masks]):
        raise ConfigError(f"--masks lacks the region of {shorten(missing)}: add {missing[0]}=IMAGE, or give no masks.")
    return masks


def load_named_adapters(
    pipe: Pipeline,
    named: Named,
    bind: Bind = "prompt",
    strength: float | StrengthTable = 1.0,
    masks: Mapping[Path, RegionMask] | None = None,
) -> None:
    """Load the adapters of `adapters_of_prompt` and bind them to their trigger words.

    Args:
        pipe: the pipeline.
        named: the adapters' folders.
        bind: see `set_hra_adapters`.
        strength: their strength.
        masks: their regions, by folder.
    """
    names: dict[str, Path] = {}
    for path in named:
        name = name_from_folder(path)
        names[f"{name} {len(names)}" if name in names else name] = path
    for name, path in names.items():
        load_hra_weights_inactive(pipe, path, name)
    # of adapters with the same word, the prompt may name one alone; tokens and regions have the noun anyway
    words = {name: [" ".join(phrase) for phrase in named[path]] for name, path in names.items()}
    regions = {name: masks[path] for name, path in names.items()} if masks else None
    if names:
        triggers = words if bind == "prompt" else None
        set_hra_adapters(pipe, list(names), strength, bind=bind, triggers=triggers, masks=regions)
