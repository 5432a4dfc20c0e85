"""Ranks by layer: `rank_pattern`, with PEFT's meaning for LoRAs.

A key is a name or a regular expression, and matches the end of a module's name, whole or behind a dot. The first key
that matches decides.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Never, TypeVar

from hra_diffusion.adapter.patterns import MAX_NAMES, check_pattern, matches
from hra_diffusion.errors import ConfigError, TargetError
from hra_diffusion.text import shorten

Value = TypeVar("Value", int, float)

_MAX_EXPRESSIONS: Final = 50
"""Most regular expressions among the patterns."""


class RankPattern(dict[str, int]):
    """A table of ranks that cannot be changed in place: a model may use it."""

    def _refuse_change(self, *_: Any, **__: Any) -> Never:
        raise ConfigError("rank_pattern cannot be changed in place: assign another table before a model uses it.")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse_change  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)


def pattern_value(patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """Return the value of the first pattern that matches a module's name, or the default."""
    return next((value for pattern, value in patterns.items() if _matches_end(pattern, module)), default)


def check_patterns(patterns: Collection[str]) -> None:
    """Check the keys of patterns.

    Raises:
        ConfigError: there are too many, or one is no regular expression.
    """
    expressions = [pattern for pattern in patterns if not _is_name(pattern)]
    if len(patterns) > MAX_NAMES or len(expressions) > _MAX_EXPRESSIONS:
        raise ConfigError(f"it has {len(patterns):,} patterns of ranks or alphas, too many")
    for expression in expressions:
        try:
            check_pattern(expression)
            check_pattern(_at_end(expression))
        except ConfigError as error:
            raise ConfigError(f"its pattern {expression[:80]!r} {error}") from error


def unmatched_patterns(patterns: Iterable[str], modules: Collection[str]) -> list[str]:
    """Return the patterns that match none of some modules."""
    return [pattern for pattern in patterns if not any(_matches_end(pattern, module) for module in modules)]


def check_rank_pattern(patterns: Iterable[str], modules: Collection[str]) -> None:
    """Check that every key of a rank_pattern matches an adapted module.

    Raises:
        TargetError: a key matches none.
    """
    if unmatched := unmatched_patterns(patterns, modules):
        raise TargetError(
            f"rank_pattern has {shorten(map(repr, unmatched))}, which match no adapted module; some of these are: "
            f"{shorten(modules)}."
        )


def _matches_end(pattern: str, module: str) -> bool:
    if f".{module}".endswith(f".{pattern}"):
        return True
    return not _is_name(pattern) and matches(_at_end(pattern), module)


def _at_end(expression: str) -> str:
    """Return the regular expression of names that end with an expression."""
    return rf"(.*\.)?({expression})"


def _is_name(pattern: str) -> bool:
    return re.fullmatch(r"[\w.]+", pattern) is not None
