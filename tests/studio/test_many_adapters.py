"""Sixty adapters in a browser: search, order, favorites, a scroll area, and chosen adapters on top."""

import base64
import io
import re
import shutil

import pytest
from PIL import Image

from hra_diffusion.studio.tabs.common import data_url

ADAPTERS = 60


def test_thumbnails_are_upright(tmp_path):
    """An image with an EXIF orientation has upright thumbnails, read as every other upload."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90° clockwise
    image.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    upright = decoded(data_url(tmp_path / "phone.jpg", 64))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[2] > 200 and upright.getpixel((10, 35))[0] > 200


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


@pytest.mark.slow
def test_sixty_adapters_are_searched_sorted_and_marked(tab, session):
    names = [f"many {number:02}" for number in range(ADAPTERS)]
    source = session.library.entry("amber").folder
    try:
        for name in names:
            shutil.copytree(source, session.library.folder / name)
        tab.reload()
        cards = tab.locator("#adapters")
        cards.locator(".card").nth(ADAPTERS).wait_for(state="attached")
        box = cards.locator(".list").evaluate("(list) => [list.clientHeight, list.scrollHeight]")
        assert box[0] < 500 < box[1]
        cards.get_by_role("button", name=re.compile("^many 42, ")).click()
        assert cards.locator(".chosen .card b").all_inner_texts() == ["many 42"]
        cards.get_by_label("Favorite: many 30", exact=True).click()
        assert cards.locator(".list .card b").first.inner_text() == "many 30"
        cards.get_by_label("Search adapters").fill("many 5")
        assert cards.locator(".list .card b").all_inner_texts() == [name for name in names if "5" in name]
        assert cards.locator(".number").inner_text().startswith("15 of ")
        cards.get_by_label("Search adapters").fill("")
        cards.get_by_label("Order of adapters").select_option("newest")
        assert cards.locator(".list .card b").first.inner_text() == "many 30"
        cards.get_by_label("Favorite: many 30", exact=True).click()
        cards.get_by_role("button", name=re.compile("^many 42, ")).click()
        assert cards.locator(".chosen .card").count() == 0
    finally:
        for name in names:
            shutil.rmtree(session.library.folder / name, ignore_errors=True)
