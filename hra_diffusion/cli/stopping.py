"""Stopping a run from outside: the first signal requests a checkpoint, a second one ends the process.

The signals are SIGINT and SIGTERM, on Windows also SIGBREAK (Ctrl+Break, or an event of the console). SIGHUP, of a
terminal that closes, requests a checkpoint, too, and never ends the process: shells send it twice. nohup ignores it.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


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


def _endings() -> set[signal.Signals]:
    return {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)}


def _hangup() -> set[signal.Signals]:
    return {signal.SIGHUP} if hasattr(signal, "SIGHUP") else set()


@contextmanager
def stop_request(*, patient: bool = False) -> Iterator[StopRequest]:
    """Record the first signal instead of stopping; a second one ends the process at once.

    Args:
        patient: ignore the second one: launchers of several processes pass on signals that all of them received.
    """
    request = StopRequest()

    def record(number: int, _: FrameType | None) -> None:
        request.number = number
        if not patient and number not in _hangup():
            for signal_ in before.keys() - _hangup():
                signal.signal(signal_, signal.SIG_DFL)

    ignored = {signal_ for signal_ in _hangup() if signal.getsignal(signal_) is signal.SIG_IGN}
    before = {signal_: signal.signal(signal_, record) for signal_ in (_endings() | _hangup()) - ignored}
    try:
        yield request
    finally:
        for signal_, handler in before.items():
            signal.signal(signal_, handler)
