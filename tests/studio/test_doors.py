"""Access to the studio: passwords, ports, public addresses, MCP and closed tabs."""

import asyncio
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from gradio_client import Client

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.doors import Doors
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.images.metadata import read_request


@pytest.mark.parametrize("auth", ["", "user", "user:", ":word"])
def test_incomplete_credentials_are_refused(auth):
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        StudioConfig(auth=auth)


def test_the_password_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert StudioConfig().credentials is None
    monkeypatch.setenv("HRA_STUDIO_AUTH", "me:from the: environment")
    assert StudioConfig().credentials == ("me", "from the: environment")
    (tmp_path / "auth").write_text("user:word\n")
    assert StudioConfig(auth_file=tmp_path / "auth").credentials == ("user", "word")
    assert StudioConfig(auth="other:word").credentials == ("other", "word")
    with pytest.raises(ConfigError, match="remove one of them"):
        StudioConfig(auth="a:b", auth_file=tmp_path / "auth")
    with pytest.raises(ConfigError, match=r"--auth_file .*none cannot be read: No such file"):
        StudioConfig(auth_file=tmp_path / "none")
    for text in ("", "user", ":"):
        (tmp_path / "auth").write_text(text)
        with pytest.raises(ConfigError, match=r"--auth_file .*auth must be USER:PASSWORD"):
            StudioConfig(auth_file=tmp_path / "auth")
    monkeypatch.setenv("HRA_STUDIO_AUTH", "user")
    with pytest.raises(ConfigError, match="HRA_STUDIO_AUTH must be USER:PASSWORD"):
        StudioConfig()
    from hra_diffusion.studio.engine.training.processes import job_environment

    assert "HRA_STUDIO_AUTH" not in job_environment()


@pytest.mark.parametrize("source", ["flag", "environment"])
def test_the_interface_of_language_models_is_refused_with_a_password(source, monkeypatch):
    auth = "user:word" if source == "flag" else None
    if source == "environment":
        monkeypatch.setenv("HRA_STUDIO_AUTH", "user:word")
    with pytest.raises(ConfigError, match="--mcp cannot be combined with a password"):
        StudioConfig(mcp=True, auth=auth)


def run(coroutine):
    """Run a coroutine in a thread of its own: this one may have the event loop of the browser tests."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


async def _call_through(doors: Doors, method: str = "GET", path: str = "/", **headers: str) -> int:
    """Return the status of a request."""
    statuses = []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    names = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    scope = {"type": "http", "method": method, "path": path, "headers": list(names.items()), "client": ("1.2.3.4", 5)}
    await doors(scope, None, send)
    return statuses[0]


def make_doors(status: int = 200, **config) -> Doors:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})

    return Doors(app, StudioConfig(**config))


@pytest.mark.parametrize(
    ("config", "host", "status"),
    [
        ({}, "127.0.0.1:7860", 200),
        ({}, "localhost:7860", 200),
        ({}, "[::1]:7860", 200),
        ({}, "LOCALHOST.", 200),
        ({}, socket.gethostname(), 200),
        ({}, "evil.example:7860", 403),
        ({}, "127.0.0.1.evil.example", 403),
        ({}, "localhost.evil.example", 403),
        ({}, "[::1", 403),
        ({"host": "0.0.0.0"}, "192.168.1.7:7860", 200),
        ({"host": "0.0.0.0"}, "evil.example", 403),
        ({"host": "studio.example"}, "studio.example:80", 200),
        ({"host": "0.0.0.0", "auth": "user:word"}, "studio.example", 200),
        ({"share": True}, "abc.gradio.live", 200),
    ],
)
def test_another_site_s_name_for_this_machine_is_refused_without_a_password(config, host, status):
    assert run(_call_through(make_doors(**config), host=host)) == status


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 200),
        ("POST", {"origin": "http://127.0.0.1:7860"}, 200),
        ("POST", {"origin": "http://127.0.0.1:3000"}, 200),
        ("POST", {"origin": "https://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"origin": "http://[", "sec_fetch_site": "same-origin"}, 200),
        ("POST", {"origin": "http://["}, 403),
        ("POST", {"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1:7860"}, 403),
        ("POST", {"sec_fetch_site": "none"}, 200),
        ("POST", {"origin": "https://studio.example", "x_forwarded_host": "studio.example, proxy"}, 200),
        ("DELETE", {"origin": "https://evil.example"}, 403),
        ("GET", {"origin": "https://evil.example", "sec_fetch_site": "cross-site"}, 200),
    ],
)
def test_uploads_of_other_sites_pages_are_refused(method, headers, status):
    path = "/gradio_api/upload"
    assert run(_call_through(make_doors(), method, path, host="127.0.0.1:7860", **headers)) == status


def test_failed_logins_are_slowed_for_parallel_guesses_too(monkeypatch):
    from hra_diffusion.studio import doors as module

    waits = []

    async def sleep(seconds):
        waits.append(round(seconds))

    # Not in asyncio itself: browsers and servers of other tests sleep in their threads.
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))
    failing, right = make_doors(400, auth="a:b"), make_doors(200, auth="a:b")

    async def guess(doors: Doors, count: int) -> list[int]:
        return await asyncio.gather(*(_call_through(doors, "POST", "/login", host="x") for _ in range(count)))

    statuses = run(guess(failing, 40))
    assert waits == list(range(31)) and statuses.count(400) == 31 and statuses.count(429) == 9
    waits.clear()
    for _ in range(3):
        assert run(guess(right, 1)) == [200]
    assert waits == [0, 0, 0]


@pytest.mark.slow
def test_a_rebound_name_a_cross_site_upload_and_clients_without_a_session_are_bounded(session, monkeypatch):
    from hra_diffusion.studio import page as module

    monkeypatch.setattr(module, "SESSIONS", 5)
    page = module.build_page(session)
    try:
        app, url, _ = page.launch(**module.launch_options(session), prevent_thread_lock=True, quiet=True)
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
        upload = f"{url}gradio_api/upload"
        for headers, status in (({"Origin": "https://evil.example"}, 403), ({"Origin": url.rstrip("/")}, 200)):
            assert httpx.post(upload, files={"files": b"x"}, headers=headers).status_code == status
        for _ in range(20):
            event = httpx.post(f"{url}gradio_api/call/jobs", json={"data": []}).json()["event_id"]
            assert "complete" in httpx.get(f"{url}gradio_api/call/jobs/{event}").text
        assert 1 <= len(app.state_holder.session_data) <= 5
    finally:
        page.close()


@pytest.mark.parametrize("port", [-1, 0, 70_000])
def test_an_invalid_port_is_refused(port):
    with pytest.raises(ConfigError, match=f"--port is {port}"):
        StudioConfig(port=port)


@pytest.mark.slow
def test_an_unusable_address_or_folder_is_refused_in_one_sentence(tmp_path, python):
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["--port", port], f"Error: Nothing can listen at 127.0.0.1, port {port}"),
            (["--host", "nowhere.invalid"], "Error: Nothing can listen at nowhere.invalid"),
            (["--folder", str(tmp_path / "file")], "Error: Cannot write"),
        ):
            done = python("app.py", *arguments)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert done.stderr.startswith(message)


@pytest.mark.slow
def test_a_public_address_without_a_password_causes_a_warning(caplog):
    from hra_diffusion.studio.page import warn_if_public

    warn_if_public(StudioConfig(share=True, auth="user:word"))
    assert caplog.text == ""
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        warn_if_public(StudioConfig(host=host))
    assert caplog.text == ""
    warn_if_public(StudioConfig(share=True))
    assert "--share without --auth" in caplog.text and "Add --auth USER:PASSWORD" in caplog.text
    for host in ("0.0.0.0", "::", "192.168.1.7", "studio.example"):
        warn_if_public(StudioConfig(host=host))
        assert f"--host {host} without --auth" in caplog.text


@pytest.mark.slow
def test_a_password_is_required(session):
    from hra_diffusion.studio.page import build_page, launch_options

    page = build_page(session)
    config, session.config = session.config, replace(session.config, auth="user:wo:rd")
    try:
        _, url, _ = page.launch(**launch_options(session), prevent_thread_lock=True, quiet=True)
        for wrong in (None, ("user", "word")):
            with pytest.raises(Exception, match=r"(?i)auth|login|credentials"):
                Client(url, verbose=False, auth=wrong).predict(api_name="/adapters")
        names = [
            adapter["name"]
            for adapter in Client(url, verbose=False, auth=("user", "wo:rd")).predict(api_name="/adapters")
        ]
        assert "amber" in names
        with httpx.Client(base_url=url) as browser:
            assert "<title>HRA studio: log in</title>" in browser.get("/").text
            assert "<svg" in browser.get("/favicon.ico").text
            browser.post("/login", data={"username": "user", "password": "wo:rd"}).raise_for_status()
            page_text = browser.get("/").text
            assert "gradio_config" in page_text and "<title>HRA studio: log in</title>" not in page_text
    finally:
        session.config = config
        page.close()


@pytest.mark.slow
def test_mcp_offers_every_endpoint(session, tmp_path):
    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    from hra_diffusion.studio.page import build_page, launch_options

    page = build_page(session)
    config, session.config = session.config, replace(session.config, mcp=True)

    async def use(url: str):
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as tools,
        ):
            await tools.initialize()
            names = {tool.name for tool in (await tools.list_tools()).tools}
            settings = {
                "prompt": "a cat",
                "steps": 1,
                "adapters": [{"name": "amber", "strength": 1}],
                "new_seed": False,
            }
            return names, await tools.call_tool("generate", settings), await tools.call_tool("adapters", {})

    try:
        _, url, _ = page.launch(**launch_options(session), prevent_thread_lock=True, quiet=True)
        with ThreadPoolExecutor(1) as executor:  # this thread has the event loop of the browser tests
            names, generated, adapters = executor.submit(lambda: asyncio.run(use(url))).result()
        assert names == {function.api_name for function in page.fns.values() if function.api_visibility == "public"}
        assert not generated.isError, generated
        (image,) = set(re.findall(r"http://127\.0\.0\.1:\d+/[^']+\.png", str(generated.content)))
        (tmp_path / "it.png").write_bytes(httpx.get(image).content)
        assert read_request(tmp_path / "it.png").adapters[0].name == "amber"
        assert "amber" in str(adapters)
    finally:
        session.config = config
        page.close()


@pytest.mark.slow
def test_escape_stops_a_generation(tab, session):
    tab.locator("#image-settings .label-wrap").click()
    for name, value in {"steps": 150, "count": 16}.items():
        box = tab.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")
    tab.keyboard.press("Control+Enter")
    tab.locator(".preview").wait_for()
    tab.keyboard.press("Escape")
    tab.get_by_text("Stopped.").wait_for()
    assert session.worker.pending == 0


@pytest.mark.slow
def test_a_closed_tab_stops_its_generation(tab, session):
    before = set(session.images.rglob("*.png"))
    tab.locator("#image-settings .label-wrap").click()
    for name, value in {"steps": 150, "count": 16}.items():
        box = tab.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")
    tab.locator("#generate").click()
    tab.locator(".preview").wait_for()
    assert session.worker.pending == 1
    tab.close()
    end = time.monotonic() + 30
    while session.worker.pending and time.monotonic() < end:
        time.sleep(0.05)
    assert session.worker.pending == 0
    assert len(set(session.images.rglob("*.png")) - before) < 16
