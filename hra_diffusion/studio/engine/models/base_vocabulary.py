"""The words that the embedded base was trained on: nothing else has a meaning to it."""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.formats.reading import read_json
from hra_diffusion.metrics.vocabulary import read_vocabulary
from hra_diffusion.resources import DATA
from hra_diffusion.training.config.defaults import EMBEDDED_BASE

_WORD = re.compile(r"[^\W\d_]{3,}")
_END_OF_WORD = "</w>"
_FUNCTION_WORDS = frozenset({"and", "the", "with", "without", "its", "his", "her", "for", "from", "into", "than"})
_MAX_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class BaseVocabulary:
    """The vocabulary of a base."""

    things: tuple[str, ...]
    """The kinds of things that it generates."""
    backgrounds: tuple[str, ...]
    """Its backgrounds, as they are worded in prompts."""
    words: frozenset[str]
    """All words of its training captions."""

    def unknown_words(self, prompt: str, known: Iterable[str] = ()) -> list[str]:
        """Return the words of a prompt that the base does not know, in their order, each once.

        Args:
            prompt: the prompt.
            known: further known texts, such as the instance prompts of the active adapters.
        """
        also = {word for text in known for word in _words(text)}
        all_known = self.words | also | _FUNCTION_WORDS
        words = _words(prompt[:_MAX_CHARACTERS])
        if words and prompt.lower().endswith(words[-1]) and any(known.startswith(words[-1]) for known in all_known):
            words.pop()  # still being typed
        return [word for word in dict.fromkeys(words) if word not in all_known]


@functools.cache
def embedded_vocabulary() -> BaseVocabulary:
    """Read the vocabulary of the embedded base: its judge has the things, its tokenizer the words.

    Raises:
        HRAError: a file is missing or damaged.
    """
    judge = read_vocabulary(DATA / "assets" / "emoji-clip")
    attributes = judge.attributes if judge else {}
    things, backgrounds = attributes.get("object", {}), attributes.get("background", {})
    captions = [text for name in ("object", "style", "background") for text in attributes.get(name, {}).values()]
    tokens = read_json(Path(EMBEDDED_BASE) / "tokenizer" / "vocab.json")
    whole = {token.removesuffix(_END_OF_WORD) for token in tokens if token.endswith(_END_OF_WORD)}
    words = whole | {word for text in captions for word in _words(text)}
    return BaseVocabulary(things=tuple(things), backgrounds=tuple(backgrounds.values()), words=frozenset(words))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
