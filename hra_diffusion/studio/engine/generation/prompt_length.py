"""The length of prompts in tokens, and the end that is too long for a text encoder."""

import copy
import threading
from dataclasses import dataclass
from typing import Any

_MAX_CHARACTERS = 20_000
"""Characters of a prompt to tokenize, far beyond the limit of any text encoder."""


@dataclass(frozen=True)
class PromptLength:
    """The length of a prompt."""

    tokens: int
    """Number of tokens, without the marks of start and end."""
    limit: int
    """Largest number of tokens that the text encoder reads at once."""
    ignored: str
    """The end beyond the limit, as typed."""


class PromptMeter:
    """Measures prompts; any thread may call.

    A tokenizer keeps the truncation of its last call. The pipeline's could truncate a prompt during generation, so this
    is a copy.

    Args:
        tokenizer: a tokenizer of the pipeline.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._lock = copy.deepcopy(tokenizer), threading.Lock()
        self._special = len(self._ids(""))
        self._limit = max(1, int(tokenizer.model_max_length) - self._special)

    def measure(self, prompt: str) -> PromptLength:
        """Return the length of a prompt without weights."""
        start, rest = prompt[:_MAX_CHARACTERS], prompt[_MAX_CHARACTERS:]
        tokens = self._count(start)
        if tokens <= self._limit:
            return PromptLength(tokens, self._limit, rest)
        return PromptLength(tokens, self._limit, start[self._kept(start) :].strip() + rest)

    def _kept(self, text: str) -> int:
        """Return the number of characters that fit, up to the end of a word."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._count(text[:middle]) <= self._limit else (low, middle - 1)
        words = text[:low].rfind(" ") + 1
        inside = low < len(text) and not text[low].isspace() and not text[low - 1 : low].isspace()
        return words if inside and words else low

    def _count(self, text: str) -> int:
        return max(0, len(self._ids(text)) - self._special)

    def _ids(self, text: str) -> list[int]:
        with self._lock:
            return self._tokenizer(text, truncation=False, verbose=False).input_ids
