"""Access to the studio: passwords, ports, public addresses, MCP and closed tabs."""

import asyncio
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from gradio_client import Client

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.metadata import read_request


@pytest.mark.parametrize("auth", ["", "user", "user:", ":word"])
def test_incomplete_credentials_are_refused(auth):
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        StudioConfig(auth=auth)


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
    warn_if_public(StudioConfig(share=True))
    assert "Add --auth USER:PASSWORD" in caplog.text


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
