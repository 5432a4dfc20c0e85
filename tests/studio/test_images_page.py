"""The Images tab, presets, prompt history and the queue: on the page and in the API."""

import re

import pytest
from gradio_client.exceptions import AppError
from PIL import Image

from hra_diffusion.studio.engine.images.metadata import read_request
from tests.studio.conftest import set_number

pytestmark = pytest.mark.slow


def test_endpoints_of_images_lists_and_presets_return_data(client, session):
    settings = {"steps": 1, "width": 32, "height": 32, "adapters": ["amber"], "new_seed": False, "seed": 77}
    files, seed = client.predict(**settings, prompts="a walrus\na whale", next_seeds=True, api_name="/generate_list")
    assert ([read_request(file["image"]).seed for file in files], seed) == ([77, 78], 77)
    result = client.predict("walrus amber 77", False, 1, api_name="/images")
    (row,) = result["images"]
    assert (row["prompt"], row["adapters"], row["seed"], row["favorite"], result["total"]) == (
        *("a walrus", ["amber"], 77, False),
        1,
    )
    assert client.predict(row["name"], True, api_name="/star_image")["favorite"]
    assert client.predict("walrus", True, 1, api_name="/images")["total"] == 1
    assert read_request(client.predict(row["name"], api_name="/image")).prompt == "a walrus"
    assert client.predict(row["name"], api_name="/delete_image") == row["name"]
    assert client.predict("walrus", False, 1, api_name="/images")["total"] == 0
    with pytest.raises(AppError, match="query must be a text"):
        client.predict(["walrus"], False, 1, api_name="/images")
    for name in (row["name"], "../presets.json", "day/../../favorites.png"):
        for endpoint in ("/image", "/delete_image"):
            with pytest.raises(AppError, match="There is no image"):
                client.predict(name, api_name=endpoint)
    assert client.predict(**settings, prompt="a", name="draft", prompts=False, api_name="/save_preset") == "draft"
    values, changes = client.predict("draft", api_name="/load_preset")
    assert (values["steps"], values["adapters"][0]["name"], "prompt" in values, "seed" in values, changes) == (
        *(1, "amber", False, False),
        [],
    )
    assert client.predict("draft", api_name="/delete_preset") not in client.predict(api_name="/presets")
    with session.queue.adding([read_request(files[1]["image"])], "another client"):
        (row,) = client.predict(api_name="/queue")
        assert row == {"position": 0, "is_mine": False, "images": 1, "id": "", "prompt": ""}
    with pytest.raises(AppError, match="not in the queue"):
        client.predict("", api_name="/cancel")


def test_images_return_to_generate_and_settings_are_saved_by_name(tab, session):
    tab.locator("#image-settings .label-wrap").click()
    set_number(tab, "steps", 1)
    tab.locator("#prompt textarea").fill("a red kite")
    tab.locator("#prompt-list .label-wrap").click()
    tab.locator("#list-of-prompts textarea").fill("{prompt} above a lake\n{prompt} in a tree")
    tab.locator("#queue-section .label-wrap").click()
    tab.get_by_text("No generation is in progress or waiting.").wait_for()
    tab.locator("#generate-list").click()
    tab.locator("#images img").nth(1).wait_for(state="attached")
    tab.locator("#generate").click()
    tab.locator("#prompt-history .label-wrap").click()
    entry = tab.locator("#prompt-history .entry")
    entry.get_by_text("a red kite", exact=True).wait_for()
    tab.wait_for_function("!document.querySelector('#generate').disabled")

    tab.get_by_role("tab", name="Images").click()
    tab.locator("#image-query input, #image-query textarea").fill("kite lake")
    tab.locator("#image-total").get_by_text("1 image", exact=False).wait_for()
    tab.get_by_role("button", name=re.compile("^Image a red kite above a lake")).click()
    tab.locator("#image-details").get_by_text("a red kite above a lake").wait_for()
    tab.locator("#star-image").click()
    tab.locator("#image-list .star").wait_for()
    tab.locator("#image-query input, #image-query textarea").fill("kite")
    tab.locator("#image-total").get_by_text("3 image", exact=False).wait_for()
    tab.get_by_role("button", name=re.compile("^Compare with the selected image: a red kite in a tree")).click()
    tab.locator("#image-comparison img").nth(1).wait_for()
    tab.locator("#use-image-settings").click()
    tab.wait_for_function("document.querySelector('#prompt textarea').value === 'a red kite above a lake'")
    assert tab.get_by_role("tab", name="Generate").get_attribute("aria-selected") == "true"
    entry.get_by_text("a red kite", exact=True).click()
    assert tab.locator("#prompt textarea").input_value() == "a red kite"

    tab.get_by_role("tab", name="Images").click()
    tab.locator("#use-as-start").click()
    tab.locator("#image-to-image.in-use").wait_for()
    tab.get_by_role("tab", name="Images").click()
    tab.locator("#delete-image").click()
    tab.locator("#confirm-delete-image").click()
    tab.locator("#image-total").get_by_text("2 image", exact=False).wait_for()
    tab.get_by_text("No image selected").wait_for()

    tab.get_by_role("tab", name="Generate").click()
    tab.locator("#presets .label-wrap").click()
    tab.locator("#preset-name input").fill("one step")
    tab.locator("#preset-name input").press("Tab")
    tab.locator("#save-preset").click()
    tab.get_by_text("Saved the preset one step.").wait_for()
    set_number(tab, "steps", 9)
    tab.locator("#load-preset").click()
    tab.wait_for_function("document.querySelector('#steps input[type=number]').value === '1'")
    assert tab.locator("#prompt textarea").input_value() == "a red kite"
    assert session.image_store.search("lake kite").total == 0
    assert tab.errors == []
    with Image.open(session.image_store.search("kite").images[0].path) as image:
        assert image.info["hra_diffusion"]
