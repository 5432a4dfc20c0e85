"""Text of messages: shortened lists, and the nearest known name."""

import difflib
from collections.abc import Iterable


def shorten(items: Iterable[str], limit: int = 8) -> str:
    """List the first ``limit`` items and count the rest: ``"a, b and 3 more"``."""
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; Python reads other bytes of names and arguments as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: str) -> str:
    """Return a text with lone surrogates spelled, for UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``": did you mean 'x'?"`` for the nearest known name, or a list of all names if none is near."""
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {match[0]!r}?" if match else f"; known are {', '.join(sorted(known)) or 'none'}."
