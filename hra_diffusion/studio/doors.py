"""Checks of HTTP requests before gradio sees them: the host, the site they come from, and the rate of logins.

- A page of another site can have its own name resolve to this machine (DNS rebinding). Without a password, the studio
  therefore answers to its addresses and to this machine's names only.
- A browser sends uploads of other sites' pages without asking, and only keeps the answer from them.
- Passwords can be guessed: an address may try one a second.
"""

import asyncio
import ipaddress
import json
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from hra_diffusion.studio.engine.config import StudioConfig

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_READING = ("GET", "HEAD", "OPTIONS")
_SECONDS = 1.0
"""Time between two logins of one address."""
_MAX_WAITING, _MAX_ADDRESSES = 30.0, 1000


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's alone."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


class Doors:
    """Middleware with the checks.

    Args:
        app: the application behind the checks.
        config: host, share and password of the studio.
    """

    def __init__(self, app: Application, config: StudioConfig) -> None:
        self.app = app
        self._any_host = bool(config.share or config.credentials)
        machine = socket.gethostname().lower()
        short = machine.partition(".")[0]
        self._names = {config.host.lower(), machine, short, f"{short}.local"}
        self._next_login: OrderedDict[str, float] = OrderedDict()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        host = _hostname(f"//{headers.get(b'host', 'localhost')}")
        if not self._is_known(host):
            return await _refuse(send, 403, f"The studio does not answer to {host!r}: open it by its address.")
        if scope["method"] not in _READING and _is_cross_site(headers, host):
            return await _refuse(send, 403, "The studio takes no requests from pages of other sites.")
        if scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login"):
            return await self._login(scope, receive, send)
        return await self.app(scope, receive, send)

    def _is_known(self, host: str | None) -> bool:
        if self._any_host or host in self._names:
            return True
        try:
            return bool(host) and bool(ipaddress.ip_address(host))
        except ValueError:
            return is_loopback(host or "")

    async def _login(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass a login on, at the earliest a second after the last one of its address unless that succeeded."""
        address = (scope.get("client") or ("",))[0]
        now = time.monotonic()
        start = max(now, self._next_login.pop(address, now))
        if start - now > _MAX_WAITING:
            self._next_login[address] = start
            return await _refuse(send, 429, "Too many logins: wait a minute.")
        self._next_login[address] = start + _SECONDS
        if len(self._next_login) > _MAX_ADDRESSES:
            self._next_login.popitem(last=False)
        await asyncio.sleep(start - now)

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._next_login.pop(address, None)
            await send(message)

        return await self.app(scope, receive, watch)


def _is_cross_site(headers: dict[bytes, str], host: str | None) -> bool:
    """Whether a browser sends a request for a page of another site; other clients send neither header."""
    if site := headers.get(b"sec-fetch-site"):
        return site == "cross-site"
    if (origin := headers.get(b"origin")) is None:
        return False
    forwarded = headers.get(b"x-forwarded-host", "").partition(",")[0].strip()
    return _hostname(origin) not in (host, _hostname(f"//{forwarded}")) or _hostname(origin) is None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
