"""Who comes in, and what becomes of what they leave behind: passwords, public addresses, closed tabs."""

import time
from dataclasses import replace

import pytest
from gradio_client import Client

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.config import StudioConfig


@pytest.mark.parametrize("auth", ["", "user", "user:", ":word"])
def test_half_a_password_is_refused(auth):
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        StudioConfig(auth=auth)


@pytest.mark.slow
def test_a_public_address_without_a_password_is_warned_of(caplog):
    from hra_diffusion.studio.page import warn_of_open_doors

    warn_of_open_doors(StudioConfig(share=True, auth="user:word"))
    assert caplog.text == ""
    warn_of_open_doors(StudioConfig(share=True))
    assert "Add --auth USER:PASSWORD" in caplog.text


@pytest.mark.slow
def test_a_password_is_asked_for(session):
    from hra_diffusion.studio.page import build_page, launch_options

    page = build_page(session)
    config, session.config = session.config, replace(session.config, auth="user:wo:rd")
    try:
        _, url, _ = page.launch(**launch_options(session), prevent_thread_lock=True, quiet=True)
        for wrong in (None, ("user", "word")):
            with pytest.raises(Exception, match=r"(?i)auth|login|credentials"):
                Client(url, verbose=False, auth=wrong).predict(api_name="/adapters")
        names = [
            each["name"] for each in Client(url, verbose=False, auth=("user", "wo:rd")).predict(api_name="/adapters")
        ]
        assert "amber" in names
    finally:
        session.config = config
        page.close()


@pytest.mark.slow
def test_a_closed_tab_ends_its_drawing(tab, session):
    before = set(session.pictures.rglob("*.png"))
    tab.locator("#picture-settings .label-wrap").click()
    for name, value in {"steps": 150, "count": 16}.items():
        box = tab.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")
    tab.locator("#generate").click()
    tab.locator(".preview").wait_for()
    assert session.model.busy == 1
    tab.close()
    end = time.monotonic() + 30
    while session.model.busy and time.monotonic() < end:
        time.sleep(0.05)
    assert session.model.busy == 0
    assert len(set(session.pictures.rglob("*.png")) - before) < 16
