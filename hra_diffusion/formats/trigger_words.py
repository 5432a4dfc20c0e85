"""Trigger words of an adapter: the words of its instance prompt that its class prompt does not have."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.folders import adapter_folder, run_settings

TRIGGER_WORDS = ("sks", "ohwx", "phol", "hta")
"""Trigger words for subjects without a prompt. Each is a single rare token of CLIP's vocabulary, which is sorted by
frequency: numbers 48136, 47993, 48140 and 49384 of 49408."""

_ARTICLES = ("a", "an", "the")

_MAX_CHARACTERS = 2000
"""Characters of a prompt that are read: files of unknown origin must not take long."""

Phrase = tuple[str, ...]
"""Words that follow each other in a prompt."""


class Trigger(NamedTuple):
    """The trigger word of an adapter.

    Attributes:
        word: the trigger word, "sks"; several words that follow each other are one phrase.
        phrase: the trigger word with the next word of the instance prompt, "sks tiger".
    """

    word: Phrase
    phrase: Phrase


def prompt_words(text: str) -> list[str]:
    """Return the words of a prompt in lower case; a learned token such as <sks> is one word."""
    return re.findall(r"<[\w-]+>|\w+", text.lower())


def find_trigger(instance_prompt: str, class_prompt: str | None = None) -> Trigger | None:
    """Return the first words of an instance prompt that are not in the class prompt; None without any.

    Without a class prompt, only the words of `TRIGGER_WORDS` and learned tokens are known as trigger words.
    """
    words, class_words = (prompt_words((text or "")[:_MAX_CHARACTERS]) for text in (instance_prompt, class_prompt))
    known = [word for word in words if word in TRIGGER_WORDS or word.startswith("<")]
    distinct = known or ([word for word in words if word not in (*class_words, *_ARTICLES)] if class_prompt else [])
    if not distinct:
        return None
    start = end = words.index(distinct[0])
    while end < len(words) and words[end] in distinct:
        end += 1
    return Trigger(word=tuple(words[start:end]), phrase=tuple(words[start : end + 1]))


def read_trigger(folder: str | Path) -> Trigger | None:
    """Return the trigger word of an adapter by the prompts of its run; None where its files do not have them.

    Raises:
        AdapterFileError: the run's settings are damaged.
    """
    settings = run_settings(folder)
    instance_prompt, class_prompt = settings.get("instance_prompt"), settings.get("class_prompt")
    if not isinstance(instance_prompt, str):
        return None
    return find_trigger(instance_prompt, class_prompt if isinstance(class_prompt, str) else None)


def trigger_beside(parts: Mapping[str, Path]) -> Trigger | None:
    """Return the trigger word beside the folders of `component_folders`; None also where the settings are damaged."""
    try:
        return read_trigger(adapter_folder(parts))
    except AdapterFileError:  # an adapter is of use without its run's settings
        return None


def named_in(prompt: str, phrases: Mapping[str, tuple[Phrase, ...]]) -> tuple[str, ...]:
    """Return the adapters with at least one of their trigger phrases in a prompt."""
    words = prompt_words(prompt)
    return tuple(name for name, choices in phrases.items() if any(holds_phrase(words, phrase) for phrase in choices))


def quoted_choices(phrases: Sequence[Phrase]) -> str:
    """Return the phrases that a message offers: 'sks dog' or 'hta dog'."""
    return " or ".join(repr(" ".join(phrase)) for phrase in phrases)


def holds_phrase(words: Sequence[str], phrase: Phrase) -> bool:
    """Whether the words of a phrase follow each other among the words of a prompt."""
    return any(tuple(words[start : start + len(phrase)]) == phrase for start in range(len(words)))
