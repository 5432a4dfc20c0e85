"""The studio below a path of another server, as behind nginx with docs/studio.md's configuration."""

import contextlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.studio.conftest import CHROMIUM, set_number

pytestmark = pytest.mark.slow

_KEPT = ("connection", "transfer-encoding", "content-length", "content-encoding")


def make_proxy(target: str) -> ThreadingHTTPServer:
    """Return a reverse proxy that serves ``target`` below /studio/ and streams its responses; other paths are 404."""

    backend = httpx.HTTPTransport(limits=httpx.Limits(max_connections=None))  # keeps no cookies, unlike a client

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # a response ends with its connection

        def forward(self) -> None:
            if not self.path.startswith("/studio/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            host = self.headers["host"]
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _KEPT}
            headers |= {"X-Forwarded-Host": host, "X-Forwarded-Proto": "http", "Accept-Encoding": "identity"}
            url = target.rstrip("/") + self.path.removeprefix("/studio")
            request = httpx.Request(self.command, url, headers=headers, content=body)
            with contextlib.closing(backend.handle_request(request)) as response:
                self.send_response(response.status_code)
                for name, value in response.headers.multi_items():
                    if name.lower() not in _KEPT:
                        self.send_header(name, value)
                self.end_headers()
                for chunk in response.stream:
                    self.wfile.write(chunk)
                    self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "POST", "HEAD"):
        setattr(Proxy, f"do_{method}", Proxy.forward)
    return ThreadingHTTPServer(("127.0.0.1", 0), Proxy)


@pytest.mark.skipif(CHROMIUM is None, reason="There is no chromium here: apt-get install chromium.")
def test_the_page_generates_below_a_path_with_a_password(session, page):
    from hra_diffusion.studio.page import build_page, launch_options

    config, session.config = session.config, replace(session.config, auth="ann:secret", root_path="/studio")
    app = build_page(session)
    _, target, _ = app.launch(**launch_options(session), prevent_thread_lock=True, quiet=True)
    proxy = make_proxy(target.replace("/studio", ""))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.set_default_timeout(60_000)
    address = f"http://127.0.0.1:{proxy.server_port}/studio/"
    try:
        page.goto(address)
        page.get_by_label("User").fill("ann")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("User or password is wrong").wait_for()
        page.get_by_label("Password").fill("secret")
        page.get_by_role("button", name="Log in").click()
        page.locator("#generate").wait_for()
        page.locator("#image-settings > .label-wrap").click()
        set_number(page, "steps", 1)
        page.locator("#generate").click()
        page.locator("#images img").first.wait_for()
        page.wait_for_function("document.querySelector('#images img').naturalWidth > 0")
    finally:
        proxy.shutdown()
        proxy.server_close()
        app.close()
        session.config = config
    outside = [url for url in requested if not url.startswith((address, "data:", "blob:"))]
    assert [url for url in outside if not url.endswith("/manifest.json")] == []  # gradio's link to it is absolute
