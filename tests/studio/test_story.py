"""The whole story in a browser: draw, look before and after, compare, teach, find it, use it, export it, restore it."""

import re
from pathlib import Path

import pytest
from PIL import Image

from hra_diffusion.formats.contents import read_components
from hra_diffusion.studio.engine.metadata import read_request

pytestmark = pytest.mark.slow


_NAMELESS = """() => {
  const shown = (each) => each.checkVisibility() && each.getBoundingClientRect().width > 1;
  const named = (each) => each.ariaLabel || each.title || each.labels?.length || each.innerText?.trim()
    || each.getAttribute('aria-labeledby') || each.querySelector('[aria-label], img[alt]') || each.type === 'file';
  const images = [...document.querySelectorAll('img')].filter((each) => shown(each) && !each.alt);
  const controls = [...document.querySelectorAll('button, input, textarea, select')].filter(
    (each) => shown(each) && !named(each));
  return [...images, ...controls].map((each) => each.outerHTML.slice(0, 200));
}"""
"""Images without an alternative text, and controls without a label, that are to be seen."""


def set_slider(tab, name: str, value: float) -> None:
    box = tab.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def choose(tab, name: str) -> None:
    tab.locator("#adapters").get_by_role("button", name=f"{name}, an adapter").click()


def strength(tab, name: str, value: float) -> None:
    tab.locator("#adapters").get_by_label(f"Strength of {name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input'));"
        " slider.dispatchEvent(new Event('change')); }",
        value,
    )


def draw(tab, session) -> Path:
    """Press Generate; the image's file among the studio's."""
    before = set(session.images.rglob("[!.]*.png"))
    tab.keyboard.press("Control+Enter")
    for _ in range(600):
        tab.wait_for_timeout(100)
        if new := set(session.images.rglob("[!.]*.png")) - before:
            break
    (path,) = new
    tab.locator("#images img").first.wait_for()
    tab.wait_for_function("!document.querySelector('.preview')")
    return path


def photograph(tab, folder: Path, stage: str) -> None:
    """Leave images of all tabs; no tab scrolls sideways, and everything has a name for those who do not see it."""
    for name, width, look in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=look)
        for title in ("Generate", "Compare", "Teach", "Library"):
            tab.get_by_role("tab", name=title).click()
            tab.wait_for_timeout(400)
            assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), title
            assert tab.evaluate(_NAMELESS) == [], title
            tab.screenshot(path=folder / f"{stage}-{title.lower()}-{name}.png", full_page=True)


def test_the_whole_story(tab, session, subject, tmp_path, request):
    shots = Path(request.config.rootpath) / "outputs" / "studio-screenshots"
    shots.mkdir(parents=True, exist_ok=True)

    # what it looks like at first; something to begin with
    photograph(tab, shots, "empty")
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.get_by_role("tab", name="Generate").click()
    tab.locator(".idea").first.wait_for()

    # draw, with an adapter
    tab.locator("#prompt textarea").fill("a 3d render of a cat on the beach")
    tab.locator("#image-settings .label-wrap").click()
    set_slider(tab, "steps", 2)
    tab.locator("#new-seed input").uncheck()
    choose(tab, "amber")
    strength(tab, "amber", 0.5)
    first = draw(tab, session)
    assert read_request(first).to_json()["adapters"] == [{"name": "amber", "strength": 0.5}]

    # before and after
    tab.locator("#before-after").click()
    tab.locator("#slider img").nth(1).wait_for()

    # a grid of two strengths and two seeds
    tab.get_by_role("tab", name="Compare").click()
    tab.locator("#x-values textarea").fill("0, 1")
    tab.locator("#y-values textarea").fill("1, 2")
    tab.locator("#draw-grid").click()
    with tab.expect_download() as download:
        tab.locator("#sheet").click()
    assert tab.locator("#grid img").count() == 4
    with Image.open(download.value.path()) as sheet:
        assert sheet.width > 64

    # teach
    tab.get_by_role("tab", name="Teach").click()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    tab.locator("#photos input[type=file]").set_input_files([*subject[:3], broken])
    tab.locator("#checked .strip img").nth(2).wait_for()
    assert "broken.png" in tab.locator("#checked .warning").inner_text()
    tab.locator("#run-name input, #run-name textarea").fill("hatted cat")
    tab.locator("#subject input, #subject textarea").fill("cat")
    tab.locator("#effort .label-wrap").click()
    for name, value in {
        "teach-steps": 3,
        "teach-rank": 2,
        "teach-class_images": 0,
        "teach-looks": 1,
        "teach-preview_steps": 1,
    }.items():
        tab.locator(f"#{name} :is(input, textarea)").fill(str(value))
    tab.locator("#teach").click()
    tab.get_by_text("Learning").wait_for()

    # the tab is closed and opened again; the run is found
    tab.reload()
    tab.get_by_role("tab", name="Teach").click()
    tab.get_by_text("Learned: it is in the library").wait_for(timeout=240_000)
    tab.locator("#samples img").first.wait_for()
    assert session.runs.get("hatted cat").done == 3

    # it is in the library; export it
    tab.get_by_role("tab", name="Library").click()
    tab.locator("#library").get_by_role("button", name="hatted cat").click()
    tab.locator(".about h2").get_by_text("hatted cat").wait_for()
    assert "a photo of a sks cat" in tab.locator(".about").inner_text()
    tab.locator("#layout input").click()
    tab.get_by_role("option", name="diffusers").click()
    tab.locator("#export-lora").click()
    with tab.expect_download() as download:
        tab.locator("#exported a").first.click()
    lora = tmp_path / "hatted.safetensors"
    download.value.save_as(lora)

    # generate with it, at two strengths
    tab.get_by_role("tab", name="Generate").click()
    tab.locator("#image-settings .label-wrap").click()
    set_slider(tab, "steps", 2)
    tab.locator("#new-seed input").uncheck()
    choose(tab, "hatted cat")
    tab.get_by_role("button", name=re.compile("Insert .a photo of a sks cat")).click()
    weak_and_strong = []
    for value in (0.25, 1.5):
        strength(tab, "hatted cat", value)
        weak_and_strong.append(draw(tab, session))
    asked = [read_request(path) for path in weak_and_strong]
    assert [request.adapters[0].strength for request in asked] == [0.25, 1.5]
    assert asked[0].prompt.startswith("a photo of a sks cat")

    # restore from a PNG
    tab.locator("#prompt textarea").fill("something else")
    tab.locator("#restore-file .label-wrap").click()
    tab.locator("#restore-file input[type=file]").set_input_files(first)
    tab.wait_for_function("document.querySelector('#prompt textarea').value.includes('on the beach')")
    again = draw(tab, session)
    assert read_request(again) == read_request(first)
    with Image.open(again) as one, Image.open(first) as other:
        assert one.tobytes() == other.tobytes()

    # the LoRA loads in diffusers
    from hra_diffusion.pipelines import load_pipeline

    pipe = load_pipeline(session.model.base.source)
    pipe.load_lora_weights(str(lora), use_safetensors=True)
    assert pipe.get_list_adapters()["unet"]

    # how far each of its layers turns
    tab.get_by_role("tab", name="Library").click()
    layers = [layer for each in read_components(session.library.entry("hatted cat").folder) for layer in each.layers]
    tab.locator(".about h2").get_by_text("hatted cat").wait_for()
    assert tab.locator(".angles li").count() == min(60, len(layers))
    assert tab.locator(".angles b").first.inner_text() == f"{max(layer.angle for layer in layers):.1f}°"

    # what it looks like, with a grid
    tab.get_by_role("tab", name="Compare").click()
    tab.locator("#compared", has_text="amber").wait_for()
    tab.locator("#x-values textarea").fill("0, 1")
    tab.locator("#draw-grid").click()
    tab.locator("#sheet").wait_for()
    photograph(tab, shots, "full")

    # nothing went wrong, and nothing left the machine
    assert tab.wrong == []
    local = ("http://127.0.0.1:", "http://localhost:", "ws://127.0.0.1:", "data:", "blob:")
    assert [url for url in tab.asked if not url.startswith(local)] == []
