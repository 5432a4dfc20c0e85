"""Regular expressions of module names, matched in bounded time: patterns come with adapters of unknown origin.

Backtracking, as in Python's `re`, takes exponential time for patterns such as (a|a)*b. Here all ends of a match are
found together: bit i of a number says whether the pattern so far can match the first i characters of the name.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

from hra_diffusion.errors import ConfigError

MAX_LENGTH: Final = 1000
"""Longest pattern, in characters."""

MAX_NAMES: Final = 10_000
"""Longest list of names or patterns: a file of unknown origin must not take long to compare with a model's modules."""

_MAX_DEPTH: Final = 20
_MAX_COST: Final = 7000
_LENGTH: Final = 80  # of a long module name
_parser: Any = importlib.import_module("re._parser")  # of the standard library; re.compile uses it

_CATEGORIES: Final[dict[str, Callable[[str], bool]]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda character: character.isalnum() or character == "_",
}


def check_pattern(pattern: str) -> None:
    """Check a regular expression.

    Raises:
        ConfigError: it is too long, is none, or has a construct other than characters, sets, groups, alternatives,
            repetitions and lookaheads outside of groups.
    """
    if len(pattern) > MAX_LENGTH:
        raise ConfigError(f"has {len(pattern):,} characters, more than {MAX_LENGTH:,}")
    try:
        _parsed(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"is no regular expression: {error}") from error


def matches(pattern: str, name: str) -> bool:
    """Return whether a checked regular expression matches a whole name."""
    return bool(_ends(_parsed(pattern), name, 1) >> len(name))


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> Any:
    items = _parser.parse(pattern)
    if items.state.flags & ~re.UNICODE:
        raise ConfigError("has flags such as (?i), which are not supported: spell the names out")
    _check(items, 0)
    if _cost(items) > _MAX_COST:
        raise ConfigError("is too complex: list names instead")
    return items


def _check(items: Any, depth: int) -> None:
    """Raise ConfigError for unsupported constructs."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"has groups more than {_MAX_DEPTH} levels deep")
    for operator, argument in items:
        name = str(operator)
        looking = name.startswith("ASSERT") and (argument[0] < 0 or depth)  # behind, or within a repetition
        flags = name == "SUBPATTERN" and (argument[1] or argument[2])
        boundary = name == "AT" and "BOUNDARY" in str(argument)
        if name not in {*_OPERATORS, *_TESTS} or looking or flags or boundary:
            raise ConfigError(f"has a construct that is not supported here ({name.lower()}): list names instead")
        for inner in _inner(name, argument):
            _check(inner, depth + 1)


def _cost(items: Any) -> int:
    """Return a bound of the steps to match a name: a repetition may take as many rounds as the name has characters."""
    cost = 0
    for operator, argument in items:
        rounds = min(argument[1], _LENGTH) if str(operator) in ("MAX_REPEAT", "MIN_REPEAT") else 1
        cost += max(1, rounds * sum(map(_cost, _inner(str(operator), argument))))
    return cost


def _inner(name: str, argument: Any) -> list[Any]:
    """Return the patterns within an operator."""
    if name == "BRANCH":
        return argument[1]
    return [argument[-1]] if name in ("SUBPATTERN", "MAX_REPEAT", "MIN_REPEAT", "ASSERT", "ASSERT_NOT") else []


def _ends(items: Any, text: str, starts: int) -> int:
    """Return the ends of all matches of a sequence that begin at some starts; bit i is the position i."""
    for operator, argument in items:
        if not starts:
            break
        starts = _step(str(operator), argument, text)(starts)
    return starts


def _step(operator: str, argument: Any, text: str) -> Callable[[int], int]:
    """Return the map from starts to ends of one operator."""
    if operator in _TESTS:
        test = _TESTS[operator](argument)
        matching = sum(1 << position for position, character in enumerate(text) if test(character))
        return lambda starts: (starts & matching) << 1
    return lambda starts: _OPERATORS[operator](argument, text, starts)


def _positions(starts: int) -> Iterator[int]:
    while starts:
        yield (lowest := starts & -starts).bit_length() - 1
        starts ^= lowest


def _in_set(members: Any) -> Callable[[str], bool]:
    """Return the test of a set such as [a-z_]."""
    negated = str(members[0][0]) == "NEGATE"

    def test(character: str) -> bool:
        return any(_is_member(str(kind), value, character) for kind, value in members[negated:]) != negated

    return test


def _is_member(kind: str, value: Any, character: str) -> bool:
    if kind == "LITERAL":
        return ord(character) == value
    if kind == "RANGE":
        return value[0] <= ord(character) <= value[1]
    *negated, name = str(value).removeprefix("CATEGORY_").split("_")
    return _CATEGORIES[name](character) != bool(negated)


def _repeat(argument: Any, text: str, starts: int) -> int:
    least, most, items = argument
    operator, inner = items[0] if len(items) == 1 else ("SUBPATTERN", (None, 0, 0, items))
    step = _step(str(operator), inner, text)
    count = 0
    while count < least and starts:
        ends = step(starts)
        if ends == starts:  # further repetitions change nothing
            break
        starts, count = ends, count + 1
    reached, count = starts, least
    while starts and count < most:
        starts = step(starts) & ~reached
        reached, count = reached | starts, count + 1
    return reached


def _branch(argument: Any, text: str, starts: int) -> int:
    ends = 0
    for items in argument[1]:
        ends |= _ends(items, text, starts)
    return ends


def _lookahead(argument: Any, text: str, starts: int) -> int:
    return sum(1 << i for i in _positions(starts) if _ends(argument[1], text, 1 << i))


def _anchor(argument: Any, text: str, starts: int) -> int:
    return starts & (1 if "BEGINNING" in str(argument) else 1 << len(text))


_TESTS: Final[dict[str, Callable[[Any], Callable[[str], bool]]]] = {
    "LITERAL": lambda code: lambda character: ord(character) == code,
    "NOT_LITERAL": lambda code: lambda character: ord(character) != code,
    "ANY": lambda _: lambda character: character != "\n",
    "IN": _in_set,
}
_OPERATORS: Final[dict[str, Callable[[Any, str, int], int]]] = {
    "BRANCH": _branch,
    "SUBPATTERN": lambda argument, text, starts: _ends(argument[-1], text, starts),
    "MAX_REPEAT": _repeat,
    "MIN_REPEAT": _repeat,
    "ASSERT": _lookahead,
    "ASSERT_NOT": lambda argument, text, starts: starts & ~_lookahead(argument, text, starts),
    "AT": _anchor,
}
