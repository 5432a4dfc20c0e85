"""The login page: a form of the studio's own in place of gradio's, which has neither a title nor the theme."""

from pathlib import Path
from typing import Any

from hra_diffusion.studio.doors import Application, Message

_PAGE = (Path(__file__).parent / "login.html").read_bytes()
_REQUIRED = b'"auth_required":true'
"""Part of the page that gradio serves to clients who are not logged in."""


class LoginPage:
    """Middleware that serves the login page.

    Args:
        app: the application, whose start page is replaced for clients who are not logged in.
    """

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass a request on; replace the response of the start page if it asks for a password."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"].strip("/"):
            return await self.app(scope, receive, send)
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = b"".join(parts)
            if _REQUIRED in body.replace(b" ", b""):
                body = _PAGE
                length = str(len(body)).encode()
                start["headers"] = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", length)]
            await send(start)
            await send({"type": "http.response.body", "body": body})

        return await self.app(scope, receive, collect)
