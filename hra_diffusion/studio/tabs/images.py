"""The Images tab: all generated images, with search, favorites, comparison, deletion, and use under Generate."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.images.image_store import StoredImage
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import empty_state, note, served_copy
from hra_diffusion.studio.tabs.deletion import deletion
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.image_details import NO_IMAGES, image_details, image_item, image_total, stored_thumbnail
from hra_diffusion.studio.tabs.loading_settings import GenerateTab, load_settings

_SCRIPT = (Path(__file__).parents[1] / "image_list.js").read_text(encoding="utf-8")
_NO_SELECTION = empty_state("No image selected", "Select an image to see its settings. ⇄ compares another one with it.")


@dataclass(frozen=True)
class _Browser:
    """The components of the list."""

    query: gr.Textbox
    starred: gr.Checkbox
    images: gr.HTML
    """The thumbnails of a page; its value is the list of selected names."""
    page: gr.State
    total: gr.HTML
    newer: gr.Button
    older: gr.Button

    @property
    def inputs(self) -> list[Any]:
        """The components of a search."""
        return [self.query, self.starred, self.page]

    @property
    def outputs(self) -> list[Any]:
        """The components that display a page."""
        return [self.images, self.page, self.total, self.newer, self.older]


@dataclass(frozen=True)
class _Viewer:
    """The components of the selected image."""

    image: gr.Image
    slider: gr.ImageSlider
    details: gr.HTML
    actions: gr.Column
    star: gr.Button
    use_settings: gr.Button
    use_as_start: gr.Button
    confirmation: gr.Group
    confirm: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """The components that display an image."""
        return [self.image, self.slider, self.details, self.actions, self.star, self.confirmation]


def build_images_tab(session: Session, generate: GenerateTab, tab: gr.Tab) -> None:
    """Build the tab.

    Args:
        session: the studio's session.
        generate: the tab that takes settings and start images.
        tab: this tab, which reads the folder when it is selected.
    """
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=6, min_width=320, elem_classes="side"):
            browser = _image_list()
        with gr.Column(scale=6, min_width=320, elem_classes="results", elem_id="image-viewer"):
            viewer = _viewer(session, browser)
    _connect_search(session, browser, tab)
    _connect_viewer(session, browser, viewer)
    _connect_use(session, browser, viewer, generate)


def _image_list() -> _Browser:
    with gr.Row(elem_classes="image-search"):
        query = gr.Textbox(
            label="Search", placeholder="words of the prompt, an adapter or a seed", elem_id="image-query", scale=3
        )
        starred = gr.Checkbox(label="Favorites only", elem_id="starred-only", scale=1, min_width=130)
    images = gr.HTML(
        [],
        label="images",
        html_template='<div class="image-list"></div>',
        js_on_load=_SCRIPT,
        apply_default_css=False,
        items=[],
        elem_id="image-list",
    )
    with gr.Row(elem_classes="tools"):
        newer = gr.Button("Newer", size="sm", interactive=False, elem_id="newer-images")
        total = gr.HTML(note(NO_IMAGES), label="number of images", elem_id="image-total")
        older = gr.Button("Older", size="sm", interactive=False, elem_id="older-images")
    return _Browser(query, starred, images, gr.State(1), total, newer, older)


def _viewer(session: Session, browser: _Browser) -> _Viewer:
    image = gr.Image(
        label="Image",
        show_label=False,
        type="filepath",
        format="png",
        interactive=False,
        visible=False,
        buttons=["download", "fullscreen"],
        elem_id="stored-image",
    )
    slider = gr.ImageSlider(
        label="Selected image and the other one",
        show_label=False,
        type="filepath",
        format="png",
        interactive=False,
        visible=False,
        elem_id="image-comparison",
    )
    with gr.Column(visible=False) as actions:
        with gr.Row(elem_classes="tools"):
            use_settings = gr.Button("Use settings", size="sm", elem_id="use-image-settings")
            use_as_start = gr.Button("Use as start image", size="sm", elem_id="use-as-start")
            star = gr.Button("Add to favorites", size="sm", elem_id="star-image")
            delete = gr.Button("Delete…", size="sm", variant="stop", elem_id="delete-image")
        confirmation, confirm = deletion(delete, browser.images, lambda names: _selected(session, names).path.name)
    details = gr.HTML(_NO_SELECTION, label="settings", elem_id="image-details")
    return _Viewer(image, slider, details, actions, star, use_settings, use_as_start, confirmation, confirm)


def _connect_search(session: Session, browser: _Browser, tab: gr.Tab) -> None:
    """Search when the tab is selected, at every change of the query, and for another page."""

    def search(query: str, starred: bool, page: int) -> list[Any]:
        return search_updates(session, query, starred, page)

    listen(tab.select, search, browser.inputs, browser.outputs, queue=False)

    def search_first_page(query: str, starred: bool) -> list[Any]:
        return search_updates(session, query, starred, 1)

    listen(
        [browser.query.change, browser.starred.change],
        search_first_page,
        browser.inputs[:2],
        browser.outputs,
        trigger_mode="always_last",
        queue=False,
    )
    for button, step in ((browser.newer, -1), (browser.older, 1)):
        listen(button.click, _turned(search, step), browser.inputs, browser.outputs, queue=False)


def _turned(search: Callable[[str, bool, int], list[Any]], step: int) -> Callable[..., list[Any]]:
    """Return a search for the page that is some steps further."""

    def turn_page(query: str, starred: bool, page: int) -> list[Any]:
        return search(query, starred, page + step)

    return turn_page


def _connect_viewer(session: Session, browser: _Browser, viewer: _Viewer) -> None:
    """Display the selected image, compare two, and change favorites and files."""

    def display_image(names: list[str] | None) -> list[Any]:
        return _displayed(session, names)

    def toggle_star(names: list[str] | None, query: str, starred: bool, page: int) -> list[Any]:
        image = _selected(session, names)
        image = session.image_store.star(image.name, not image.starred)
        return [_star_label(image), *search_updates(session, query, starred, page)]

    def delete(names: list[str] | None, query: str, starred: bool, page: int) -> list[Any]:
        session.image_store.delete_image(_selected(session, names).name)
        images, *others = search_updates(session, query, starred, page)
        return [images | {"value": []}, *others, *_displayed(session, [])]

    listen(browser.images.change, display_image, browser.images, viewer.outputs, queue=False)
    inputs = [browser.images, *browser.inputs]
    listen(viewer.star.click, toggle_star, inputs, [viewer.star, *browser.outputs], queue=False)
    listen_busy(viewer.confirm, "Deleting…", delete, inputs, [*browser.outputs, *viewer.outputs])


def _connect_use(session: Session, browser: _Browser, viewer: _Viewer, generate: GenerateTab) -> None:
    """Take the settings, or the image, to Generate."""

    def selected_png(names: list[str] | None) -> Path:
        return _selected(session, names).path

    def use_as_start_image(names: list[str] | None, base: str | None) -> list[Any]:
        image = _selected(session, names)
        width, height = image.nearest_size(session.worker.bases.get(base).multiple)
        return [served_copy(session, image.path), width, height, None, 0, gr.update(selected="generate")]

    load_settings(session, generate, viewer.use_settings.click, selected_png, browser.images)
    settings = generate.settings
    outputs = [settings.image, settings.width, settings.height, settings.mask_image, settings.outpaint, generate.tabs]
    listen(viewer.use_as_start.click, use_as_start_image, [browser.images, settings.base], outputs)


def _selected(session: Session, names: Any) -> StoredImage:
    if not isinstance(names, list) or not names:
        raise ConfigError("No image is selected: select one first.")
    return session.image_store.find(names[0])


def search_updates(session: Session, query: str, starred: bool, page: int) -> list[Any]:
    """Return the updates of the list for a page of results: items, page, total, and both buttons."""
    result = session.image_store.search(str(query or ""), starred=bool(starred), page=page)
    return [
        gr.update(items=[image_item(image) for image in result.images]),
        result.page,
        note(image_total(result, searched=bool(query or starred))),
        gr.update(interactive=result.page > 1),
        gr.update(interactive=result.page < result.pages),
    ]


def _displayed(session: Session, names: Any) -> list[Any]:
    """Return the updates of the viewer for no image, one or two."""
    hidden = gr.update(visible=False)
    if not names:
        return [gr.update(value=None, visible=False), hidden, _NO_SELECTION, hidden, gr.skip(), hidden]
    image = _selected(session, names)
    other = session.image_store.find(names[1]) if len(names) > 1 else None
    readable = bool(stored_thumbnail(image.path, image.changed))
    copy = served_copy(session, image.path) if readable else None
    if other and readable and stored_thumbnail(other.path, other.changed):
        views = [hidden, gr.update(value=(copy, served_copy(session, other.path)), visible=True)]
    else:
        views = [gr.update(value=copy, visible=readable), hidden]
    text = image_details(image) + (image_details(other) if other else "")
    return [*views, text, gr.update(visible=True), _star_label(image), hidden]


def _star_label(image: StoredImage) -> Any:
    return gr.update(value="Remove from favorites" if image.starred else "Add to favorites")
