"""What the page keeps and shows between one action and the next, in a browser."""

import re
from pathlib import Path

import pytest
from gradio_client import handle_file
from PIL import Image

from hra_diffusion.studio.engine.metadata import read_request

pytestmark = pytest.mark.slow


def number(tab, name: str, value: float) -> None:
    box = tab.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def begin(tab, count: int = 1) -> None:
    """Ask for quick images."""
    tab.locator("#image-settings .label-wrap").click()
    number(tab, "steps", 1)
    number(tab, "count", count)


def drawn(tab, session, button: str, images: int) -> list[int]:
    """Press a button; the seeds of the images that it draws."""
    before = set(session.images.rglob("[!.]*.png"))
    tab.locator(button).click()
    for _ in range(600):
        tab.wait_for_timeout(100)
        new = set(session.images.rglob("[!.]*.png")) - before
        if len(new) == images:
            break
    tab.wait_for_function("!document.querySelector('#stage .preview')")
    tab.wait_for_timeout(300)
    return [read_request(path).seed for path in sorted(new)]


def choose(tab, name: str, cards: str = "#adapters"):
    button = tab.locator(cards).get_by_role("button", name=re.compile(f"^{name}, "))
    button.click()
    return button


def test_what_is_restored_and_compared_is_the_image_that_is_looked_at(tab, session):
    begin(tab, 3)
    choose(tab, "amber")
    seeds = drawn(tab, session, "#generate", 3)
    tab.locator("#images button.thumbnail-item").nth(2).click()
    tab.wait_for_timeout(500)
    assert drawn(tab, session, "#before-after", 2) == [seeds[2]] * 2
    tab.locator("#restore").click()
    tab.wait_for_function(f"document.querySelector('#seed input').value === '{seeds[2]}'")
    tab.locator("#new-seed input").check()
    number(tab, "count", 1)
    (again,) = drawn(tab, session, "#generate", 1)
    assert drawn(tab, session, "#before-after", 2) == [again] * 2
    tab.locator("#restore").click()
    tab.wait_for_function("!document.querySelector('#new-seed input').checked")
    assert tab.locator("#seed input").input_value() == str(again)


def test_an_adapter_that_has_gone_is_not_chosen_any_more(tab, session, adapter_folders):
    session.library.add(adapter_folders["amber"], "passing")
    tab.reload()
    begin(tab)
    choose(tab, "passing")
    (seed,) = drawn(tab, session, "#generate", 1)
    tab.get_by_role("tab", name="Library").click()
    choose(tab, "passing", "#library")
    tab.locator("#change .label-wrap").click()
    tab.locator("#new-name input, #new-name textarea").fill("renamed")
    tab.locator("#rename").click()
    tab.locator("#library .card.chosen", has_text="renamed").wait_for()
    session.library.delete("renamed")
    tab.get_by_role("tab", name="Generate").click()
    assert tab.locator("#adapters .card.chosen").count() == 0
    assert drawn(tab, session, "#generate", 1)
    tab.locator("#restore-file .label-wrap").click()
    (path,) = (each for each in session.images.rglob("[!.]*.png") if read_request(each).seed == seed)
    tab.locator("#restore-file input[type=file]").set_input_files(path)
    tab.get_by_text("'passing' is not in the library").wait_for()
    assert drawn(tab, session, "#generate", 1) == [seed]


def test_an_error_leaves_no_word_of_the_image_that_it_ended(tab, session, monkeypatch):
    begin(tab, 2)
    paint, told = session.model.painter._image, []

    def fail(request, *rest):
        told.append(request)
        if len(told) == 2:
            raise RuntimeError("the second image")
        return paint(request, *rest)

    monkeypatch.setattr(session.model.painter, "_image", fail)
    tab.locator("#generate").click()
    tab.wait_for_function("document.querySelector('#images img') && !document.querySelector('#stage .preview')")
    tab.get_by_text("Something went wrong that was not foreseen").wait_for()


def test_a_photograph_after_a_condition_is_annotated_and_after_a_choice_it_is_as_chosen(tab, client, subject):
    control = {"adapters": ["edges"], "control_image": handle_file(str(subject[0]))}
    asked = {"prompt": "a cat", "steps": 1, "width": 32, "height": 32}
    followed = client.predict(**asked, **control, api_name="/generate")[0][0]["image"]
    tab.locator("#follow > .label-wrap").click()
    annotator, image = tab.locator("#annotator input"), tab.locator("#control-image")
    tab.locator("#restore-file .label-wrap").click()
    tab.locator("#restore-file input[type=file]").set_input_files(followed)
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


def test_captions_stay_when_a_image_is_added(tab, subject):
    tab.get_by_role("tab", name="Teach").click()
    tab.locator("#photos input[type=file]").set_input_files(subject[:2])
    tab.locator("#checked .strip img").nth(1).wait_for()
    cell = tab.locator("#captions [data-row='1'][data-col='1']").first
    cell.dblclick()
    tab.keyboard.type("asleep")
    tab.keyboard.press("Enter")
    tab.locator("#photos input[type=file]").last.set_input_files(subject[2])
    tab.locator("#checked .strip img").nth(2).wait_for()
    assert "asleep" in cell.inner_text()


def test_the_keyboard_stays_on_the_card_that_it_chose(tab):
    choose(tab, "birch").press("Enter")
    tab.wait_for_timeout(300)
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("birch, ")


def test_a_grid_says_its_seed_and_its_sheet_holds_the_settings(tab, session):
    begin(tab)
    choose(tab, "amber")
    tab.get_by_role("tab", name="Compare").click()
    tab.locator("#x-values textarea").fill("0, 1")
    tab.locator("#y-axis input").click()
    tab.get_by_role("option", name="prompt").click()
    tab.locator("#y-values textarea").fill("a cat")
    tab.locator("#draw-grid").click()
    with tab.expect_download() as download:
        tab.locator("#sheet").click()
    request = read_request(Path(download.value.path()))
    assert f"Of seed {request.seed}." in tab.locator("#grid").inner_text()
    assert request.adapters[0].name == "amber"
    with Image.open(download.value.path()) as sheet:
        assert sheet.width > 64


@pytest.mark.parametrize("width", [1280, 400])
def test_what_a_file_is_to_be_is_said_beside_the_icon_and_not_below_it(tab, width):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.locator("#restore-file .label-wrap").click()
    label, icon = (tab.locator(f"#restore-file {each}") for each in ("label", ".icon-wrap"))
    label.first.wait_for()
    assert label.first.bounding_box()["y"] + label.first.bounding_box()["height"] <= icon.first.bounding_box()["y"]
