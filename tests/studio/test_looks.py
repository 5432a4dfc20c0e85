"""The look of the page in a browser: accessibility, contrast, distances, and stability while it loads."""

import shutil

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

_MAX_SHIFT = 0.25
"""The limit of a poor cumulative layout shift; alone it is 0.05, and with a busy processor and many adapters 0.11."""
_OBSERVE_SHIFTS = """window.shifts = 0;
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.shifts += entry.value; })
  .observe({ type: 'layout-shift', buffered: true });"""
_TOO_NEAR = """() => [...document.querySelectorAll(
    '.status, .preview, .metrics, .loss, .adapter-details, .angles, .empty, .costs, .card, .panel, .knowledge > div'
  )].filter((card) => {
    const frame = card.getBoundingClientRect();
    const texts = document.createTreeWalker(card, NodeFilter.SHOW_TEXT);
    for (let node = texts.nextNode(); node; node = texts.nextNode()) {
      if (!node.data.trim() || !node.parentElement.checkVisibility({ visibilityProperty: true })) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      const text = range.getBoundingClientRect();
      if (text.width < 2 || text.bottom > frame.bottom + 1) continue;  // hidden, or scrolled out of sight
      if (Math.min(frame.bottom - text.bottom, text.left - frame.left, text.top - frame.top) < 3) return true;
    }
    return false;
  }).map((card) => card.className)"""
"""Returns the classes of cards whose text touches an edge."""
_TOO_WIDE = """() => [...document.querySelectorAll('.tabitem label')]
  .filter((label) => label.checkVisibility() && label.clientWidth && label.scrollWidth > label.clientWidth + 1)
  .map((label) => label.textContent)"""
"""Returns the texts of labels that do not fit into their place."""


def open_sections(page) -> None:
    for _ in range(2):  # sections in sections
        for label in page.locator("button.label-wrap:not(.open)").all():
            if label.is_visible():
                label.click()
    page.wait_for_timeout(300)


@pytest.fixture
def stopped_job(session, tmp_path):
    """A stopped job with a validation image and its prompt, which the page chooses as the newest one."""
    from hra_diffusion.pipelines.models import image_name
    from hra_diffusion.studio.engine.training.training_images import TrainingImage
    from hra_diffusion.studio.engine.training.training_job import TrainingJob
    from hra_diffusion.training.config import DreamBoothConfig

    image = Image.new("RGB", (32, 32), "red")
    image.save(tmp_path / "photo.png")
    job = TrainingJob(name="looked at", images=(TrainingImage(file=tmp_path / "photo.png"),), subject="dog")
    folder = session.jobs.folder / job.name
    config = job.config(session.worker.base.source, DreamBoothConfig(), folder)
    job.write(folder, config)
    prompt = config.validation.validation_prompts[0].replace("{instance_prompt}", config.data.instance_prompt)
    (folder / "validation" / "step-00010").mkdir(parents=True)
    image.save(folder / "validation" / "step-00010" / image_name(prompt, config.run.seed))
    (folder / "output.txt").write_text("Stopped after step 10, which checkpoint-10 holds")
    yield
    shutil.rmtree(folder)


def test_no_tab_violates_axe_in_light_or_dark_and_no_text_touches_an_edge(stopped_job, tab):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    violations = []
    tab.set_viewport_size({"width": 1280, "height": 900})
    titles = [title.strip() for title in tab.locator("#tabs .tab-container [role=tab]").all_inner_texts()]
    for theme in ("light", "dark"):
        tab.emulate_media(color_scheme=theme)
        for title in dict.fromkeys(filter(None, titles)):
            tab.get_by_role("tab", name=title).first.click()
            tab.wait_for_timeout(300)
            if title == "Library" and theme == "light":
                tab.locator("#library .card .select").first.click()
                tab.locator("#adapter-details h2").wait_for()
            if title == "Train" and theme == "light":
                tab.locator("#validation-images .caption-label").first.wait_for()
            if theme == "light":
                open_sections(tab)
            found = axe.run(tab, options={"resultTypes": ["violations"]}).response["violations"]
            violations += [
                (theme, title, rule["id"], node["html"][:120]) for rule in found for node in rule["nodes"][:3]
            ]
            assert tab.evaluate(_TOO_NEAR) == [], title
    assert violations == []
    tab.set_viewport_size({"width": 390, "height": 844})
    for title in dict.fromkeys(filter(None, titles)):
        tab.get_by_role("tab", name=title).first.click()
        tab.wait_for_timeout(300)
        assert tab.evaluate(_TOO_WIDE) == [], title


def test_the_page_loads_without_shifts_and_errors_and_from_this_machine_alone(page, address):
    requested, messages = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.add_init_script(_OBSERVE_SHIFTS)
    page.goto(address)
    page.locator("#generate").wait_for()
    page.wait_for_timeout(2000)
    assert messages == []
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []
    assert page.evaluate("window.shifts") <= _MAX_SHIFT
