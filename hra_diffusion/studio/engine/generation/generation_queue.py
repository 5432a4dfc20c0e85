"""The queue of generations as visitors see it: their own with prompts and a cancel flag, those of others without.

The model's thread serves one request after the other (`ModelWorker`). An item is one request, or one line of a list.
"""

import itertools
import secrets
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.requests import GenerateRequest

_MAX_PROMPT = 80
"""Characters of a displayed prompt."""


@dataclass(eq=False, kw_only=True)
class QueueItem:
    """A request in the queue."""

    client: str
    request: GenerateRequest
    images: int
    """Number of images."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    canceled: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends the request that the model's thread has of this item; see `GenerationQueue.submitting`."""
    order: int | None = None
    """Order among the submitted requests; None before the submission."""


@dataclass(frozen=True, kw_only=True)
class QueueRow:
    """An item as one client sees it."""

    position: int
    """Number of items before this one."""
    is_mine: bool
    """Whether it is an item of this client."""
    images: int
    id: str = ""
    """For `cancel`; "" for items of others."""
    prompt: str = ""
    """The first 80 characters of the prompt; "" for items of others."""


class GenerationQueue:
    """All items of all clients."""

    def __init__(self) -> None:
        self._items: list[QueueItem] = []
        self._orders = itertools.count()
        self._lock = threading.Lock()

    @contextmanager
    def adding(
        self, requests: Sequence[GenerateRequest], client: str, *, images: int | None = None
    ) -> Generator[list[QueueItem]]:
        """Add items within a ``with`` block.

        Args:
            requests: the request of each item.
            client: their owner.
            images: number of images of each item; by default that of its request.
        """
        items = [QueueItem(client=client, request=request, images=images or request.count) for request in requests]
        with self._lock:
            self._items += items
        try:
            yield items
        finally:
            with self._lock:
                self._items = [item for item in self._items if item not in items]

    @contextmanager
    def submitting(self, item: QueueItem) -> Generator[threading.Event]:
        """Mark an item as submitted within a ``with`` block; yield the stop flag of this submission."""
        with self._lock:
            item.stop, item.order = threading.Event(), next(self._orders)
            if item.canceled:
                item.stop.set()
        try:
            yield item.stop
        finally:
            with self._lock:
                item.order = None

    def remove_done(self, item: QueueItem) -> None:
        """Remove an item that is done, before the end of its ``with`` block."""
        with self._lock:
            self._items = [other for other in self._items if other is not item]

    def client_rows(self, client: str) -> list[QueueRow]:
        """Return all items in order as a client sees them: submitted ones first, then waiting lines of lists."""
        with self._lock:
            submitted = sorted((item.order, item) for item in self._items if item.order is not None)
            waiting = [item for item in self._items if item.order is None and not item.canceled]
        items = [*(item for _, item in submitted), *waiting]
        return [_row(position, item, is_mine=item.client == client) for position, item in enumerate(items)]

    def cancel(self, item_id: object, client: str) -> None:
        """Cancel one item of a client, within a step.

        Raises:
            ConfigError: the client has no such item.
        """
        with self._lock:
            for item in self._items:
                if item.id == item_id and item.client == client:
                    return _cancel(item)
        raise ConfigError("This generation is not in the queue any more, or is not yours.")

    def cancel_all(self, client: str) -> None:
        """Cancel all items of a client, within a step."""
        with self._lock:
            for item in self._items:
                if item.client == client:
                    _cancel(item)


def _cancel(item: QueueItem) -> None:
    item.canceled = True
    item.stop.set()


def _row(position: int, item: QueueItem, *, is_mine: bool) -> QueueRow:
    if not is_mine:
        return QueueRow(position=position, is_mine=False, images=item.images)
    text = " ".join(item.request.prompt[: 2 * _MAX_PROMPT].split())
    prompt = text if len(text) <= _MAX_PROMPT else text[: _MAX_PROMPT - 1] + "…"
    return QueueRow(position=position, is_mine=True, images=item.images, id=item.id, prompt=prompt)
