"""The page in a browser: its state and messages between one action and the next."""

import re
from pathlib import Path

import pytest
from gradio_client import handle_file
from PIL import Image

from hra_diffusion.studio.engine.images.metadata import read_request
from tests.studio.conftest import set_number

pytestmark = pytest.mark.slow


def set_quick_settings(tab, count: int = 1) -> None:
    """Set one step per image, and the number of images."""
    tab.locator("#image-settings .label-wrap").click()
    set_number(tab, "steps", 1)
    set_number(tab, "count", count)


def generated_seeds(tab, session, button: str, images: int) -> list[int]:
    """Press a button; return the seeds of the generated images."""
    before = set(session.images.rglob("[!.]*.png"))
    tab.locator(button).click()
    for _ in range(600):
        tab.wait_for_timeout(100)
        new = set(session.images.rglob("[!.]*.png")) - before
        if len(new) == images:
            break
    tab.wait_for_function(f"!document.querySelector('{button}').disabled")  # the page has the results then
    return [read_request(path).seed for path in sorted(new)]


def choose(tab, name: str, cards: str = "#adapters"):
    button = tab.locator(cards).get_by_role("button", name=re.compile(f"^{name}, "))
    button.click()
    return button


def test_load_settings_and_before_after_use_the_selected_image(tab, session):
    set_quick_settings(tab, 3)
    choose(tab, "amber")
    seeds = generated_seeds(tab, session, "#generate", 3)
    tab.locator("#images button.thumbnail-item").nth(2).click()
    tab.wait_for_timeout(500)
    assert generated_seeds(tab, session, "#before-after", 2) == [seeds[2]] * 2
    tab.locator("#load-settings").click()
    tab.wait_for_function(f"document.querySelector('#seed input').value === '{seeds[2]}'")
    tab.locator("#new-seed input").check()
    set_number(tab, "count", 1)
    (again,) = generated_seeds(tab, session, "#generate", 1)
    assert generated_seeds(tab, session, "#before-after", 2) == [again] * 2
    tab.locator("#load-settings").click()
    tab.wait_for_function("!document.querySelector('#new-seed input').checked")
    assert tab.locator("#seed input").input_value() == str(again)


def test_a_deleted_adapter_is_no_longer_selected(tab, session, adapter_folders):
    session.library.add(adapter_folders["amber"], "temporary")
    tab.reload()
    set_quick_settings(tab)
    choose(tab, "temporary")
    (seed,) = generated_seeds(tab, session, "#generate", 1)
    tab.get_by_role("tab", name="Library").click()
    choose(tab, "temporary", "#library")
    tab.locator("#rename-delete .label-wrap").click()
    tab.locator("#new-name input, #new-name textarea").fill("renamed")
    tab.locator("#rename").click()
    tab.locator("#library .card.selected", has_text="renamed").wait_for()
    session.library.delete("renamed")
    tab.get_by_role("tab", name="Generate").click()
    assert tab.locator("#adapters .card.selected").count() == 0
    assert generated_seeds(tab, session, "#generate", 1)
    tab.locator("#png-info .label-wrap").click()
    (path,) = (path for path in session.images.rglob("[!.]*.png") if read_request(path).seed == seed)
    tab.locator("#png-info input[type=file]").set_input_files(path)
    tab.get_by_text("'temporary' is not in the library").wait_for()
    assert generated_seeds(tab, session, "#generate", 1) == [seed]


def test_an_error_removes_the_preview_of_its_image(tab, session, monkeypatch):
    set_quick_settings(tab, 2)
    generate, requests = session.worker.generator._generate_image, []

    def fail(request, *rest):
        requests.append(request)
        if len(requests) == 2:
            raise RuntimeError("the second image")
        return generate(request, *rest)

    monkeypatch.setattr(session.worker.generator, "_generate_image", fail)
    tab.locator("#generate").click()
    tab.wait_for_function(
        "document.querySelector('#images img') && !document.querySelector('#generation-status .preview')"
    )
    tab.get_by_text("Unexpected error").wait_for()


def test_an_upload_takes_the_user_s_annotator_and_not_that_of_loaded_settings(tab, client, subject):
    control = {"adapters": ["edges"], "control_image": handle_file(str(subject[0]))}
    settings = {"prompt": "a cat", "steps": 1, "width": 32, "height": 32}
    image_file = client.predict(**settings, **control, api_name="/generate")[0][0]["image"]
    tab.locator("#control > .label-wrap").click()
    annotator, image = tab.locator("#annotator input"), tab.locator("#control-image")
    tab.locator("#png-info .label-wrap").click()
    tab.locator("#png-info input[type=file]").set_input_files(image_file)
    tab.wait_for_function("document.querySelector('#annotator input').value.startsWith('none')")

    def upload(path: Path) -> None:
        image.get_by_label(re.compile("Clear|Remove")).first.click()
        image.locator("input[type=file]").set_input_files(path)
        image.locator("img").wait_for()
        tab.wait_for_timeout(500)

    upload(subject[0])
    assert annotator.input_value() == "as the control was trained"
    annotator.click()
    tab.get_by_role("option", name="thin edges").click()
    upload(subject[1])
    assert annotator.input_value() == "thin edges"


def test_captions_stay_when_an_image_is_added(tab, subject):
    tab.get_by_role("tab", name="Train").click()
    tab.locator("#training-images input[type=file]").set_input_files(subject[:2])
    tab.locator("#image-report img").nth(1).wait_for()
    names = [path.name for path in subject]
    tab.get_by_label(f"Crop of {names[0]}").fill("0, 0, 64, 9999")
    tab.get_by_label(f"Caption of {names[0]}").fill("at night")
    tab.locator("#image-report .note", has_text="exceeds").wait_for()
    tab.get_by_label(f"Crop of {names[0]}").fill("0, 0, 64, 32")
    tab.get_by_label(f"Crop of {names[0]}").press("Tab")
    tab.wait_for_function("document.querySelector('.image-card .crop-box').style.height === '25%'")
    tab.locator("#caption-table .label-wrap").click()
    cell = tab.locator("#captions [data-row='1'][data-col='1']").first
    cell.dblclick()
    editor = tab.locator("#captions textarea:focus, #captions input:focus").first
    editor.fill("asleep")
    editor.press("Enter")
    tab.locator("#training-images input[type=file]").last.set_input_files(subject[2])
    tab.locator("#image-report img").nth(2).wait_for()
    assert "asleep" in cell.inner_text()
    captions = [tab.get_by_label(f"Caption of {name}") for name in names[:3]]
    assert [caption.input_value() for caption in captions] == ["at night", "asleep", ""]
    tab.get_by_label(f"Remove {names[0]}").click()
    tab.wait_for_function("document.querySelectorAll('.image-card').length === 2")
    assert captions[1].input_value() == "asleep"
    tab.locator("#caption-all .label-wrap").click()
    tab.locator("#fill-captions").click()
    tab.wait_for_function("document.querySelector('.image-card textarea').value.startsWith('a photo of sks')")


def test_the_keyboard_focus_stays_on_the_selected_card(tab):
    choose(tab, "birch").press("Enter")
    tab.wait_for_timeout(300)
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("birch, ")


def test_a_grid_displays_its_seed_and_its_file_contains_the_settings(tab, session):
    set_quick_settings(tab)
    choose(tab, "amber")
    tab.get_by_role("tab", name="Compare").click()
    tab.locator("#x-values textarea").fill("0, 1")
    tab.locator("#y-axis input").click()
    tab.get_by_role("option", name="prompt").click()
    tab.locator("#y-values textarea").fill("a cat")
    tab.locator("#generate-grid").click()
    with tab.expect_download() as download:
        tab.locator("#download-grid").click()
    request = read_request(Path(download.value.path()))
    assert f"Seed {request.seed}" in tab.locator("#grid").inner_text()
    assert request.adapters[0].name == "amber"
    with Image.open(download.value.path()) as image:
        assert image.width > 64
    tab.locator("#grid button[data-image]").first.click()  # the cell at strength 0
    tab.locator("#cell-image img").wait_for()
    tab.locator("#use-cell").click()
    tab.locator("#prompt textarea").wait_for()
    assert tab.locator("#prompt textarea").input_value() == "a cat"
    assert tab.locator("#adapters output").inner_text() == "0.00"
    assert tab.locator("#restored").inner_text().startswith("Loaded: prompt, adapters amber at 0,")


@pytest.mark.parametrize("width", [1280, 400])
def test_the_label_of_a_file_field_is_above_its_icon(tab, width):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.locator("#png-info .label-wrap").click()
    label, icon = (tab.locator(f"#png-info {selector}") for selector in ("label", ".icon-wrap"))
    label.first.wait_for()
    assert label.first.bounding_box()["y"] + label.first.bounding_box()["height"] <= icon.first.bounding_box()["y"]
