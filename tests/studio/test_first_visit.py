"""The first visit: what the embedded base knows, and the example that is chosen already."""

import re
from pathlib import Path

import pytest

from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.models.base_vocabulary import embedded_vocabulary
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.first_visit import base_knowledge, first_settings, first_visit, unknown_words_hint
from hra_diffusion.studio.tabs.memory import _restore
from tests.captioners import WORDS, make_blip


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    session = Session(StudioConfig(folder=folder, captioner=str(folder / "captioner")))  # a test writes the model
    yield session
    session.worker.close()


def test_the_vocabulary_has_the_words_of_the_base():
    vocabulary = embedded_vocabulary()
    assert len(vocabulary.things) == 48
    for thing in vocabulary.things:
        for background in vocabulary.backgrounds:
            assert vocabulary.unknown_words(f"a 3d render of a (striped:1.2) {thing} {background}") == []
    assert vocabulary.unknown_words("a photo of two spaceships, Photo") == ["photo", "two", "spaceships"]
    assert vocabulary.unknown_words("a cat on the bea") == []  # still being typed
    assert vocabulary.unknown_words("a cat on the bea, ") == ["bea"]
    assert vocabulary.unknown_words("a sks cat", ["sks"]) == []


def test_a_first_visit_chooses_an_example_adapter_with_its_prompt(embedded):
    values = first_settings(embedded)
    (use,) = values["adapters"]
    entry = embedded.library.entry(use["name"])
    assert entry.base == embedded.worker.base.name
    assert entry.trigger in values["prompt"]
    assert unknown_words_hint(embedded, values["prompt"], values["adapters"]) == ""
    assert use["name"] in first_visit(embedded)
    assert 'data-tab="Train"' in first_visit(embedded)
    assert "48 things" in base_knowledge(embedded)


def test_the_examples_fit_the_embedded_base_in_every_folder(embedded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as after an installation
    assert {entry.base for entry in embedded.library.entries()} == {embedded.worker.base.name} == {"emoji-sd"}
    assert first_settings(embedded)["adapters"]


def test_unknown_words_are_named_and_those_of_chosen_adapters_are_known(embedded):
    assert "“sks”" in unknown_words_hint(embedded, "a 3d render of a sks tiger", [])
    assert unknown_words_hint(embedded, "a 3d render of a sks tiger", [{"name": "tiger", "strength": 1}]) == ""
    assert "&lt;" not in unknown_words_hint(embedded, "<b>spaceship</b> house", None)
    assert "“spaceship”" in unknown_words_hint(embedded, "<b>spaceship</b> house", None, "emoji-sd")
    assert unknown_words_hint(embedded, "a spaceship", None, "another base") == ""


def test_other_bases_have_neither_list_nor_hint_nor_example(session):
    assert base_knowledge(session) == unknown_words_hint(session, "a spaceship", None) == ""
    assert first_settings(session) == {}
    assert "No images yet" in first_visit(session)


@pytest.mark.slow
def test_stored_values_win_over_those_of_a_first_visit(page):
    names, first = ["prompt", "adapters", "steps"], {"prompt": "first", "adapters": ["tiger"]}
    call = f"([memory, ...values]) => ({_restore(names, first)})(memory, ...values)"

    def restored(memory):
        return page.evaluate(call, [memory, "default", [], 25])

    assert restored(None) == ["first", ["tiger"], 25]
    assert restored({"prompt": "", "adapters": [], "steps": 7}) == ["", [], 7]
    assert restored({"prompt": "kept"}) == ["kept", [], 25]


def caption_images_of_a_control(page, subject: list[Path]) -> None:
    """Caption images with the model, and train a control with a condition for one of them, which is refused."""
    page.locator("#training-images input[type=file]").set_input_files(subject[:2])
    page.locator("#image-report img").nth(1).wait_for()
    page.locator("#caption-all > .label-wrap").click()
    page.locator("#caption-images").click()
    page.wait_for_function("[...document.querySelectorAll('.image-card textarea')].every((field) => field.value)")
    captions = [page.get_by_label(f"Caption of {path.name}").input_value() for path in subject[:2]]
    assert set(" ".join(captions).split()) <= set(WORDS)
    page.locator("#training-kind > .label-wrap").click()
    page.get_by_label("Control (ControlNet)").check()
    page.get_by_text("Usual · 2000 steps").wait_for()
    page.locator("#train-annotator input").click()
    page.get_by_role("option", name="given: uploaded conditions of another kind").click()
    page.locator("#train-conditions input[type=file]").set_input_files(subject[0])
    page.locator("#train-conditions").get_by_text(subject[0].stem).first.wait_for()
    page.locator("#job-name :is(input, textarea)").fill("a control")
    page.locator("#train").click()
    page.get_by_text(f"Images have no condition: {subject[1].name}").wait_for()


@pytest.mark.slow
def test_the_first_press_of_generate_uses_the_example_adapter(embedded, page, subject):
    from hra_diffusion.studio.engine.images.metadata import read_request
    from hra_diffusion.studio.page import build_page, launch_options
    from tests.studio.conftest import set_number

    app = build_page(embedded)
    _, address, _ = app.launch(**launch_options(embedded), prevent_thread_lock=True, quiet=True)
    try:
        page.set_viewport_size({"width": 390, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.locator("#adapters .card.selected").wait_for()
        page.locator(".knowledge summary").click()
        assert "teddy bear" in page.locator(".knowledge").inner_text()
        page.locator(".knowledge summary").click()
        page.locator(".tab-link").click()
        page.locator("#train").wait_for()
        make_blip(Path(embedded.config.captioner))
        caption_images_of_a_control(page, subject)
        page.get_by_role("tab", name="Generate").click()
        page.locator("#image-settings > .label-wrap").click()
        set_number(page, "steps", 1)
        heights = [page.locator(name).bounding_box()["y"] for name in ("#prompt", "#generate", "#generation-status")]
        assert heights == sorted(heights)  # also on a phone
        page.locator("#generate").click()
        page.locator("#images img").first.wait_for()
        (path,) = embedded.images.rglob("[!.]*.png")
        assert [use.name for use in read_request(path).adapters] == ["tiger"]
        page.locator("#prompt textarea").fill("a spaceship in the city")
        page.locator("#token-counter .warning", has_text=re.compile("does not know “spaceship”")).wait_for()
        page.reload()
        page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'a spaceship in the city'")
    finally:
        app.close()
