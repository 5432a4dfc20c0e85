"""Stopping a run from outside: the first SIGINT or SIGTERM requests a checkpoint, the second ends the process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run stopped because of a signal.

    Attributes:
        exit_code: 128 + the signal's number, as in shells.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class StopRequest:
    """The number of the signal that requested a stop, if any."""

    number: int | None = None


@contextmanager
def stop_request(*, patient: bool = False) -> Iterator[StopRequest]:
    """Record the first signal instead of stopping; a second one ends the process at once.

    Args:
        patient: ignore the second one: launchers of several processes pass on signals that all of them received.
    """
    request = StopRequest()

    def record(number: int, _: FrameType | None) -> None:
        request.number = number
        if not patient:
            for signal_ in SIGNALS:
                signal.signal(signal_, signal.SIG_DFL)

    before = {signal_: signal.signal(signal_, record) for signal_ in SIGNALS}
    try:
        yield request
    finally:
        for signal_, handler in before.items():
            signal.signal(signal_, handler)
