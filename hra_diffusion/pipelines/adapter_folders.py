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
    files = _by_adapter("--masks", "IMAGE", given, named)
    return {folder: read_image(Path(file), _OUTSIDE) for folder, file in files.items()}


def read_region_prompts(given: Sequence[str], named: Named) -> dict[Path, str]:
    """Read the prompts of adapters' regions, ADAPTER=PROMPT; return them by folder. Errors as of `read_masks`."""
    return _by_adapter("--region_prompts", "PROMPT", given, named)


def _by_adapter(flag: str, value: str, given: Sequence[str], named: Named) -> dict[Path, str]:
    """Return the values of a flag, ADAPTER=VALUE for each adapter or for none, by the adapters' folders."""
    folders = {path.name: path for path in named}
    values: dict[Path, str] = {}
    for text in given:
        name, _, content = text.partition("=")
        if name not in folders:
            known = f"those of the prompt are {shorten(folders)}" if folders else "the prompt holds no trigger word"
            raise ConfigError(f"{flag} has {text!r}: write ADAPTER={value} with the name of an adapter; {known}.")
        values[folders[name]] = content
    if values and (missing := [name for name, path in folders.items() if path not in values]):
        raise ConfigError(f"{flag} lacks the region of {shorten(missing)}: add {missing[0]}={value}, or leave it out.")
    return values


def load_named_adapters(
    pipe: Pipeline,
    named: Named,
    bind: Bind = "prompt",
    strength: float | StrengthTable = 1.0,
    masks: Mapping[Path, RegionMask] | None = None,
    prompts: Mapping[Path, str] | None = None,
) -> None:
    """Load the adapters of `adapters_of_prompt` and bind them to their trigger words.

    Args:
        pipe: the pipeline.
        named: the adapters' folders.
        bind: see `set_hra_adapters`.
        strength: their strength.
        masks: their regions, by folder.
        prompts: the prompts of the regions, by folder.
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
    texts = {name: prompts[path] for name, path in names.items()} if prompts else None
    if names:
        triggers = words if bind == "prompt" else None
        set_hra_adapters(pipe, list(names), strength, bind=bind, triggers=triggers, masks=regions, prompts=texts)
