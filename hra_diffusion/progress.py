"""Progress of long phases: library functions report each item, and a command shows bars."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Reporter = Callable[[str, int, int], None]
"""Takes the name of a phase, and its numbers of finished and of all items."""

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def tracked(items: Sequence[T], phase: str) -> Iterator[T]:
    """Yield items, and report each one after it was used."""
    report = _reporter.get()
    for count, item in enumerate(items, 1):
        yield item
        if report:
            report(phase, count, len(items))


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Report the items of all phases to a function within a ``with`` block."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)
