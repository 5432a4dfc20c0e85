"""Stopping a run from outside: the first SIGINT or SIGTERM is a wish that the run fulfils, the second an order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run stopped because a signal asked for it.

    Attributes:
        exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class StopWish:
    """Whether a signal came, and which."""

    number: int | None = None


@contextmanager
def stop_wish(*, patient: bool = False) -> Iterator[StopWish]:
    """Note the first signal instead of stopping; a second one then stops the process at once.

    Args:
        patient: note the second one, too. Launchers of several processes pass on a signal that each of them has had.
    """
    wish = StopWish()

    def note(number: int, _: FrameType | None) -> None:
        wish.number = number
        if not patient:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, note) for each in SIGNALS}
    try:
        yield wish
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
