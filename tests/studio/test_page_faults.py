"""What a user does by mistake: errors, Escape, stops, reloads. The tests share one page."""

import re

import pytest
from PIL import Image

from hra_diffusion.studio.engine.images.metadata import read_request
from tests.studio.conftest import CHROMIUM, set_number

pytestmark = pytest.mark.slow

COVERED = """() => [...document.querySelectorAll('[data-testid="status-tracker"]')].filter((node) =>
  node.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !node.classList.contains('hide')
  && node.getBoundingClientRect().width > 1).map((node) => node.parentElement.id)"""
"""Returns the ids of blocks that gradio covers with a status such as "Error"."""


@pytest.fixture(scope="module")
def page(request, address, session):
    """A page that all tests of this file use, one after the other."""
    if CHROMIUM is None:
        pytest.skip("There is no chromium here: apt-get install chromium.")
    session.worker.generator  # noqa: B018 - loads the model, so that tokens are counted
    page = request.getfixturevalue("browser").new_page()
    page.set_default_timeout(30_000)
    page.goto(address)
    page.locator("#generate").wait_for()
    yield page
    page.close()


def message(page, focus: str | None = None) -> str:
    """Return the text of the newest message, and close it; before, wait until a field has the focus."""
    text = page.locator("[data-testid=toast-text]").last
    text.wait_for()
    content = text.inner_text()
    if focus:
        page.wait_for_function(f"document.activeElement.closest('{focus}')")
    page.locator("[data-testid=toast-close]").last.click()
    page.locator("[data-testid=toast-text]").first.wait_for(state="detached")
    return content


def open_section(page, name: str) -> None:
    if not page.locator(f"#{name} > .label-wrap.open").count():
        page.locator(f"#{name} > .label-wrap").click()


def wait_until_ready(page) -> None:
    page.wait_for_function("!document.querySelector('#generate').disabled")


def test_an_error_is_said_once_and_covers_no_input_and_a_second_file_can_be_dropped(page, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    open_section(page, "png-info")
    for _ in range(2):
        page.locator("#png-info input[type=file]").set_input_files(tmp_path / "plain.png")
        assert message(page).startswith("This PNG holds no settings")
        assert page.evaluate(COVERED) == []
        page.locator("#png-info input[type=file]").wait_for(state="attached")


def test_a_message_names_the_label_and_the_field_has_the_focus(page):
    page.get_by_role("tab", name="Train").click()
    page.locator("#train").click()
    assert message(page, "#job-name") == "“Name” is empty: give a name."
    page.locator("#job-name :is(input, textarea)").fill("x")
    open_section(page, "advanced")
    page.locator("#train-rank :is(input, textarea)").fill("three")
    page.locator("#advanced > .label-wrap").click()
    page.locator("#train-rank").wait_for(state="hidden")
    page.locator("#train").click()
    assert message(page, "#train-rank") == "“Rank” must be a whole number; found 'three'."
    page.locator("#train-rank :is(input, textarea)").fill("")


def test_the_tokens_of_a_prompt_are_counted_and_the_ignored_end_is_as_typed(page):
    page.get_by_role("tab", name="Generate").click()
    page.locator("#prompt textarea").fill("a Photo of a cat")
    page.locator("#token-counter", has_text="tokens").wait_for()
    open_section(page, "image-settings")
    page.get_by_label("Plain text").check()
    page.locator("#prompt textarea").fill("Cat " * 90)
    page.locator("#token-counter .warning", has_text="Ignored: Cat Cat").wait_for()
    page.get_by_label("Weights as in A1111").check()
    page.locator("#prompt textarea").fill("a cat")


def test_a_trigger_word_is_inserted_at_the_cursor_alone(page, session, adapter_folders):
    folder = session.library.add(adapter_folders["amber"], "worded").folder
    prompts = '[data]\ninstance_prompt = "a photo of a sks cat"\n[prior]\nclass_prompt = "a photo of a cat"\n'
    (folder / "config.toml").write_text(prompts)
    try:
        page.reload()
        page.locator("#adapters").get_by_role("button", name=re.compile("^worded, ")).click()
        prompt = page.locator("#prompt textarea")
        prompt.fill("a photo of a cat")
        prompt.evaluate("(box) => box.setSelectionRange(12, 12)")
        page.locator("#adapters .trigger").click()
        page.wait_for_function("document.querySelector('#prompt textarea').value === 'a photo of a sks cat'")
        page.locator("#adapters").get_by_role("button", name=re.compile("^worded, ")).click()
    finally:
        session.library.delete("worded")


def test_escape_closes_a_list_and_an_enlarged_image_and_a_stop_keeps_the_earlier_images(page, session):
    page.reload()
    page.locator("#generate").wait_for()
    open_section(page, "image-settings")
    set_number(page, "steps", 1)
    page.locator("#generate").click()
    page.locator("#images img").first.wait_for()
    wait_until_ready(page)
    assert re.fullmatch(r"seed \d+", page.locator("#images .caption-label").first.inner_text().strip())
    set_number(page, "steps", 150)
    set_number(page, "count", 16)
    page.locator("#generate").click()
    assert page.locator("#generate").is_disabled() and page.locator("#generate").inner_text() == "Generating…"
    page.locator("#generation-status .preview").wait_for()
    page.locator("#scheduler input").click()
    page.locator("[role=option]:visible").first.wait_for()
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    assert session.worker.pending == 1 and page.locator("#generate").is_disabled()
    session_images = page.locator("#images img").count()
    page.keyboard.press("Escape")
    page.get_by_text("Stopped.").wait_for()
    wait_until_ready(page)
    assert page.locator("#images img").count() >= min(1, session_images)
    set_number(page, "count", 1)
    set_number(page, "steps", 1)


def test_before_and_after_have_the_request_of_the_image_and_not_of_the_form(page, session):
    page.locator("#adapters").get_by_role("button", name=re.compile("^amber, ")).click()
    page.locator("#prompt textarea").fill("a cat at night")
    earlier = set(session.images.rglob("[!.]*.png"))
    page.locator("#generate").click()
    while not set(session.images.rglob("[!.]*.png")) - earlier:
        page.wait_for_timeout(100)
    wait_until_ready(page)
    page.wait_for_timeout(500)
    page.locator("#adapters").get_by_role("button", name=re.compile("^amber, ")).click()
    page.locator("#prompt textarea").fill("another prompt")
    before = set(session.images.rglob("[!.]*.png"))
    page.locator("#before-after").click()
    page.locator("#slider img").nth(1).wait_for()
    new = sorted(set(session.images.rglob("[!.]*.png")) - before)
    requests = [read_request(path) for path in new]
    assert [request.prompt for request in requests] == ["a cat at night"] * 2
    assert [[use.name for use in request.adapters] for request in requests] == [[], ["amber"]]


def test_a_reload_keeps_prompt_settings_images_and_the_training_form(page, subject):
    page.locator("#prompt textarea").fill("a prompt to keep")
    set_number(page, "steps", 7)
    page.get_by_role("tab", name="Train").click()
    page.locator("#subject :is(input, textarea)").fill("hatted cat")
    page.locator("#training-images input[type=file]").set_input_files(subject[:2])
    page.locator("#image-report img").nth(1).wait_for()
    page.wait_for_timeout(500)
    page.reload()
    page.locator("#generate").wait_for()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a prompt to keep'")
    page.locator("#images img").first.wait_for()
    open_section(page, "image-settings")
    page.wait_for_function("document.querySelector('#steps input[type=number]')?.value === '7'")
    page.get_by_role("tab", name="Train").click()
    page.wait_for_function("document.querySelector('#subject :is(input, textarea)')?.value === 'hatted cat'")
    page.locator("#image-report img").nth(1).wait_for()


def draw_stroke(page, canvas) -> None:
    """Draw a short stroke at the center of a canvas with the mouse."""
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 30, steps=8)
    page.mouse.up()


def test_a_sketch_is_the_control_image_at_once_and_its_section_carries_a_mark(page):
    page.get_by_role("tab", name="Generate").click()
    open_section(page, "control")
    open_section(page, "sketch")
    page.locator("#sketchpad [aria-label=Brush].highlight").wait_for()
    canvas = page.locator("#sketchpad canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    draw_stroke(page, canvas)
    page.locator("#control-image img").wait_for()
    page.wait_for_function("document.querySelector('#annotator input').value.startsWith('none')")
    page.locator("#control.in-use").wait_for()


def test_a_mask_is_painted_over_the_start_image_and_used_at_once(page, session, subject):
    page.get_by_role("tab", name="Generate").click()
    open_section(page, "image-to-image")
    page.locator("#image-to-image input[type=file]").first.set_input_files(subject[0])
    open_section(page, "inpainting")
    canvas = page.locator("#mask-editor canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    assert page.locator("#mask-image img").count() == 0  # no stroke yet
    draw_stroke(page, canvas)
    page.locator("#mask-image img").wait_for()
    page.locator("#inpainting.in-use").wait_for()
    (newest,) = sorted(session.cache.glob("*/mask.png"), key=lambda path: path.stat().st_mtime)[-1:]
    with Image.open(newest) as mask:
        values = mask.histogram()
    assert 0 < sum(values[128:]) < sum(values[:128])  # a stroke in white, on black
