"""Folders of many adapters: the adapters of a prompt are found by their trigger words, before any is loaded."""

import logging
from pathlib import Path

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.folders import adapters_within, holds_adapter
from hra_diffusion.formats.trigger_words import Phrase, named_in, read_trigger
from hra_diffusion.pipelines.activation import set_hra_adapters
from hra_diffusion.pipelines.loading import load_hra_weights_inactive
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.trigger_phrases import distinct_phrases
from hra_diffusion.text import shorten

logger = logging.getLogger(__name__)

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
        all_words = shorten(" ".join(own[0]) for own in phrases.values())
        logger.warning("The prompt holds no trigger word (%s): the base model generates the image.", all_words)
    return named


def load_named_adapters(pipe: Pipeline, named: Named) -> None:
    """Load the adapters of `adapters_of_prompt` and bind them to their trigger words."""
    names = {f"adapter{number}": path for number, path in enumerate(named)}
    for name, path in names.items():
        load_hra_weights_inactive(pipe, path, name)
    triggers = {name: [" ".join(phrase) for phrase in named[path]] for name, path in names.items()}
    if names:
        set_hra_adapters(pipe, list(names), bind="prompt", triggers=triggers)
