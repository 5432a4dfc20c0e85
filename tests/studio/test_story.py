"""A session in a browser: generate, compare, train, export, and load the settings of an image."""

import re
from pathlib import Path

import pytest
from PIL import Image

from hra_diffusion.formats.contents import read_components
from hra_diffusion.studio.engine.images.metadata import read_request
from tests.studio.conftest import set_number

pytestmark = pytest.mark.slow


_NAMELESS = """() => {
  const visible = (node) => node.checkVisibility() && node.getBoundingClientRect().width > 1;
  const named = (node) => node.ariaLabel || node.title || node.labels?.length || node.innerText?.trim()
    || node.getAttribute('aria-labelledby') || node.querySelector('[aria-label], img[alt]') || node.type === 'file';
  const images = [...document.querySelectorAll('img')].filter(
    (node) => visible(node) && !node.alt && !named(node.closest('button') ?? node));
  const controls = [...document.querySelectorAll('button, input, textarea, select')].filter(
    (node) => visible(node) && !named(node));
  return [...images, ...controls].map((node) => node.outerHTML.slice(0, 200));
}"""
"""Returns visible images without an alternative text, and visible controls without a label."""


def select_adapter(tab, name: str) -> None:
    tab.locator("#adapters").get_by_role("button", name=f"{name}, an adapter").click()


def set_strength(tab, name: str, value: float) -> None:
    tab.locator("#adapters").get_by_label(f"Strength of {name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input'));"
        " slider.dispatchEvent(new Event('change')); }",
        value,
    )


class Effort:
    """Counts the clicks, and the fields filled in, on the way to an image of one's own subject."""

    def __init__(self) -> None:
        self.clicks = self.fields = 0

    def click(self, locator) -> None:
        self.clicks += 1
        locator.click()

    def fill(self, locator, text: str) -> None:
        self.fields += 1
        locator.fill(text)


def generate(tab, session, press=None) -> Path:
    """Press Generate, by default with the keyboard; return the studio's file of the image."""
    before = set(session.images.rglob("[!.]*.png"))
    press() if press else tab.keyboard.press("Control+Enter")
    for _ in range(600):
        tab.wait_for_timeout(100)
        if new := set(session.images.rglob("[!.]*.png")) - before:
            break
    (path,) = new
    tab.locator("#images img").first.wait_for()
    tab.wait_for_function("!document.querySelector('.preview')")
    return path


def check_tabs(tab, folder: Path, stage: str) -> None:
    """Check that no tab scrolls sideways and that everything has an accessible name; save screenshots."""
    for name, width, theme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=theme)
        for title in ("Generate", "Compare", "Train", "Library"):
            tab.get_by_role("tab", name=title).click()
            tab.wait_for_timeout(400)
            assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), title
            assert tab.evaluate(_NAMELESS) == [], title
            tab.screenshot(path=folder / f"{stage}-{title.lower()}-{name}.png", full_page=True)


def test_a_session_from_the_first_image_to_an_exported_adapter(tab, session, subject, tmp_path, request):
    shots = Path(request.config.rootpath) / "outputs" / "studio-screenshots"
    shots.mkdir(parents=True, exist_ok=True)

    # the empty page, with example prompts
    check_tabs(tab, shots, "empty")
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.get_by_role("tab", name="Generate").click()
    tab.locator(".example-prompt").first.wait_for()

    # generate with an adapter
    tab.locator("#prompt textarea").fill("a 3d render of a cat on the beach")
    tab.locator("#image-settings .label-wrap").click()
    set_number(tab, "steps", 2)
    tab.locator("#new-seed input").uncheck()
    select_adapter(tab, "amber")
    set_strength(tab, "amber", 0.5)
    first = generate(tab, session)
    assert read_request(first).to_json()["adapters"] == [{"name": "amber", "strength": 0.5}]

    # before and after
    tab.locator("#before-after").click()
    tab.locator("#slider img").nth(1).wait_for()

    # a grid of two strengths and two seeds
    tab.get_by_role("tab", name="Compare").click()
    tab.locator("#x-values textarea").fill("0, 1")
    tab.locator("#y-values textarea").fill("1, 2")
    tab.locator("#generate-grid").click()
    with tab.expect_download() as download:
        tab.locator("#download-grid").click()
    assert tab.locator("#grid img").count() == 4
    with Image.open(download.value.path()) as image:
        assert image.width > 64

    # train
    effort = Effort()
    effort.click(tab.get_by_role("tab", name="Train"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with tab.expect_file_chooser() as chooser:
        effort.click(tab.locator("#training-images button").first)
    chooser.value.set_files([*subject[:3], broken])
    tab.locator("#image-report img").nth(2).wait_for()
    assert "broken.png" in tab.locator("#image-report .problem").inner_text()
    tab.get_by_label(f"Caption of {subject[1].name}").wait_for()
    effort.fill(tab.locator("#job-name input, #job-name textarea"), "hatted cat")
    effort.fill(tab.locator("#subject input, #subject textarea"), "cat")
    tab.locator("#advanced .label-wrap").click()
    for name, value in {
        "train-steps": 3,
        "train-rank": 2,
        "train-class_images": 0,
        "train-validations": 1,
        "train-inference_steps": 1,
        "train-train_batch_size": 1,
        "train-validation_prompts": "{instance_prompt}\na red hat",
    }.items():
        tab.locator(f"#{name} :is(input, textarea)").fill(str(value))
    effort.click(tab.locator("#train"))
    tab.get_by_text("Training in progress").wait_for()

    # after a reload, the page displays the job
    tab.reload()
    tab.get_by_role("tab", name="Train").click()
    tab.get_by_text("Finished: the adapter is in the library").wait_for(timeout=240_000)
    tab.locator("#validation-images img").nth(1).wait_for()
    assert "step 3 · a red hat" in tab.locator("#validation-images").inner_text()
    assert session.jobs.get("hatted cat").step == 3
    tab.locator(".loss .values").nth(1).hover()
    tab.locator("#smoothing input[type=number]").fill("0")
    tab.locator("#smoothing input[type=number]").press("Tab")
    tab.wait_for_function("document.querySelector('.loss') && !document.querySelector('.loss .raw')")
    tab.locator("#checkpoints .label-wrap").click()
    tab.locator("#checkpoint input").click()
    tab.get_by_role("option", name="1", exact=True).click()
    tab.locator("#use-checkpoint").click()
    tab.get_by_text("The library has the checkpoint of step 1 as “hatted cat step 1”").wait_for()
    effort.click(tab.locator("#try-job"))
    tab.locator("#adapters .card.selected", has_text="hatted cat").wait_for()
    assert tab.locator("#prompt textarea").input_value() == "a photo of a sks cat"
    image = generate(tab, session, lambda: effort.click(tab.locator("#generate")))
    assert [use.name for use in read_request(image).adapters] == ["hatted cat"]
    assert effort.clicks <= 5
    assert effort.fields <= 2
    select_adapter(tab, "hatted cat")
    tab.locator("#prompt textarea").fill("a 3d render of a cat on the beach")

    # the adapter is in the library; export it
    tab.get_by_role("tab", name="Library").click()
    tab.locator("#library").get_by_role("button", name="hatted cat, an adapter").click()
    tab.locator("#adapter-details h2").get_by_text("hatted cat").wait_for()
    assert "a photo of a sks cat" in tab.locator("#adapter-details").inner_text()
    tab.locator("#layout input").click()
    tab.get_by_role("option", name="diffusers").click()
    tab.locator("#export-lora").click()
    with tab.expect_download() as download:
        tab.locator("#exported a").first.click()
    lora = tmp_path / "hatted.safetensors"
    download.value.save_as(lora)

    # generate with the new adapter at two strengths
    tab.get_by_role("tab", name="Generate").click()
    tab.locator("#image-settings .label-wrap").click()
    set_number(tab, "steps", 2)
    tab.locator("#new-seed input").uncheck()
    select_adapter(tab, "hatted cat")
    tab.get_by_role("button", name=re.compile("Insert .sks")).click()
    paths = []
    for value in (0.25, 1.5):
        set_strength(tab, "hatted cat", value)
        paths.append(generate(tab, session))
    requests = [read_request(path) for path in paths]
    assert [request.adapters[0].strength for request in requests] == [0.25, 1.5]
    assert "sks" in requests[0].prompt.split()

    # load the settings of a PNG
    tab.locator("#prompt textarea").fill("something else")
    tab.locator("#png-info .label-wrap").click()
    tab.locator("#png-info input[type=file]").set_input_files(first)
    tab.wait_for_function("document.querySelector('#prompt textarea').value.includes('on the beach')")
    again = generate(tab, session)
    assert read_request(again) == read_request(first)
    with Image.open(again) as one, Image.open(first) as other:
        assert one.tobytes() == other.tobytes()

    # the LoRA loads in diffusers
    from hra_diffusion.pipelines import load_pipeline

    pipe = load_pipeline(session.worker.base.source)
    pipe.load_lora_weights(str(lora), use_safetensors=True)
    assert pipe.get_list_adapters()["unet"]

    # the rotation angle of each layer
    tab.get_by_role("tab", name="Library").click()
    components = read_components(session.library.entry("hatted cat").folder)
    layers = [layer for component in components for layer in component.layers]
    tab.locator("#adapter-details h2").get_by_text("hatted cat").wait_for()
    assert tab.locator(".angles li").count() == min(60, len(layers))
    assert tab.locator(".angles b").first.text_content() == f"{max(layer.angle for layer in layers):.1f}°"

    # the full page, with a grid
    tab.get_by_role("tab", name="Compare").click()
    tab.locator("#compared-prompt", has_text="amber").wait_for()
    tab.locator("#x-values textarea").fill("0, 1")
    tab.locator("#generate-grid").click()
    tab.locator("#download-grid").wait_for()
    check_tabs(tab, shots, "full")

    # no script failed, and no request left the machine
    assert tab.errors == []
    local = ("http://127.0.0.1:", "http://localhost:", "ws://127.0.0.1:", "data:", "blob:")
    assert [url for url in tab.requested_urls if not url.startswith(local)] == []
