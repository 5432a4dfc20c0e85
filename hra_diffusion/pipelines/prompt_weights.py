r"""A1111's weights in prompts: ``(word:1.2)``, ``(word)`` for 1.1, ``[word]`` for 1 / 1.1, ``\(`` for a bracket.

Brackets nest, and their weights multiply. A bracket without its counterpart is text, as is a colon without a number.
"""

import re
from typing import Literal, NamedTuple

from hra_diffusion.errors import ConfigError

PromptSyntax = Literal["a1111", "plain"]
"""Reading of prompts: with weights and of any length, or as they are and up to the text encoders' length."""
MAX_CHARACTERS = 8_000
"""Characters of a prompt that are read."""

_STEP = 1.1
_MOST = 10.0
_OPENING = {")": "(", "]": "["}
_TOKENS = re.compile(
    r"""
      \\(?P<escaped>[\\()\[\]])
    | :[ ]{0,9}(?P<weight>\d{1,3}(?:\.\d{0,9})?|\.\d{1,9})[ ]{0,9}\)
    | [()\[\]]
    | [^\\()\[\]:]+
    | [\\:]
    """,
    re.VERBOSE,
)
"""Every character is read a bounded number of times."""


class Fragment(NamedTuple):
    """A part of a prompt with one weight."""

    text: str
    weight: float


def parse_weights(prompt: str) -> list[Fragment]:
    """Split a prompt into fragments, in order; neighbors differ in weight.

    Raises:
        ConfigError: a weight is above 10.
    """
    tokens = list(_TOKENS.finditer(prompt))
    factors, closing = _pairs(tokens)
    weights, fragments = [1.0], list[Fragment]()
    for index, token in enumerate(tokens):
        if index in factors:
            weights.append(weights[-1] * factors[index])
            continue
        if index in closing:
            weights.pop()
            continue
        text = token["escaped"] or token[0]
        if fragments and fragments[-1].weight == weights[-1]:
            text = fragments.pop().text + text
        fragments.append(Fragment(text, weights[-1]))
    for text, weight in fragments:
        if weight > _MOST:
            raise ConfigError(
                f"The prompt has the weight {weight:g} for {text.strip()[:60]!r}: give at most {_MOST:g}."
            )
    return fragments


def _pairs(tokens: list[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Return the factors of opening brackets, and the closing brackets, of all pairs, by their index."""
    factors, closing = dict[int, float](), set[int]()
    open_brackets = list[tuple[int, str]]()
    counts = {"(": 0, "[": 0}
    for index, token in enumerate(tokens):
        text = token[0]
        if text in counts:
            counts[text] += 1
            open_brackets.append((index, text))
            continue
        wanted = "(" if token["weight"] else _OPENING.get(text, "")
        while wanted and counts[wanted]:
            start, bracket = open_brackets.pop()
            counts[bracket] -= 1
            if bracket == wanted:  # else it has no counterpart, and is text
                factors[start] = float(token["weight"] or (_STEP if wanted == "(" else 1 / _STEP))
                closing.add(index)
                break
    return factors, closing
