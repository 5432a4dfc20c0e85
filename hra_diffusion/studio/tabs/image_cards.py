"""The training images as cards: each image with its crop, its caption and a button that removes it.

The table of captions and crops is the form's value: cards change it in the browser, before any other event.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ImageError
from hra_diffusion.studio.engine.training.training_images import check_images, crop_box
from hra_diffusion.studio.tabs.common import data_url, strip_folders
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.training_fields import CAPTION_COLUMNS, captions_and_crops

_SCRIPT = (Path(__file__).parents[1] / "image_cards.js").read_text(encoding="utf-8")
_INTO_TABLE = "(cards, table) => [{ ...table, headers: %s, data: cards?.rows ?? table?.data ?? [] }]"
_SIDE = 320
"""Longest side of a card's image, in pixels."""


def image_cards(files: gr.File, captions: gr.Dataframe) -> Callable[[Any], Any]:
    """Build the cards of the files, connected with the table of captions and crops.

    Returns:
        A function of an event, after which the cards display the table again.
    """
    cards = gr.HTML(
        None,
        html_template='<div class="image-cards"></div>',
        js_on_load=_SCRIPT,
        apply_default_css=False,
        elem_id="image-report",
        **card_properties([], []),
    )

    def check_files(files: list[str] | None, captions: Any = None) -> Any:
        checked = check_images([Path(file) for file in files or []])
        names = [path.name for path, size, _ in checked if size]
        rows = [[name, *values] for name, values in zip(names, captions_and_crops(captions, names), strict=True)]
        return gr.update(**card_properties(checked, rows)), gr.update(value=rows, visible=bool(rows))

    def show_table(files: list[str] | None, captions: Any) -> Any:
        return check_files(files, captions)[0]

    def show_crops(files: list[str] | None, cards: Any) -> Any:
        rows, removed = _edits(cards)
        checked = check_images([Path(file) for file in files or []])
        usable = [str(path) for path, size, _ in checked if size]
        if removed is None or removed >= len(usable):
            return gr.update(crops=_crops(checked, rows)), gr.skip()
        return gr.skip(), [file for file in files or [] if str(file) != usable[removed]]

    listen(files.change, check_files, [files, captions], [cards, captions])
    listen(captions.input, show_table, [files, captions], cards)
    script = _INTO_TABLE % str(CAPTION_COLUMNS)
    listen(cards.change, None, [cards, captions], captions, js=script)
    listen(cards.change, show_crops, [files, cards], [cards, files])
    return lambda trigger: listen(trigger, show_table, [files, captions], cards)


def card_properties(
    checked: Sequence[tuple[Path, tuple[int, int] | None, str]], rows: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return the content of the cards.

    Args:
        checked: the files, as `check_images` returns them.
        rows: name, caption and crop of each usable image.
    """
    usable = [(path, size) for path, size, _ in checked if size]
    return {
        "entries": [
            {
                "name": path.name,
                "url": data_url(path, _SIDE),
                "size": f"{size[0]}×{size[1]}",
                "caption": row[1],
                "crop": row[2],
            }
            for (path, size), row in zip(usable, rows, strict=True)
        ],
        "crops": _crops(checked, rows),
        "problems": [strip_folders(problem) for _, size, problem in checked if not size],
    }


def _crops(
    checked: Sequence[tuple[Path, tuple[int, int] | None, str]], rows: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the crop of each usable image as shares of its sides (x, y, width, height), or its problem."""
    crops: list[dict[str, Any]] = []
    usable = [(path, size) for path, size, _ in checked if size]
    for (path, (width, height)), row in zip(usable, rows, strict=False):
        try:
            x, y, w, h = crop_box(path.name, row[2], (width, height))
            crops.append({"box": [x / width, y / height, w / width, h / height], "problem": ""})
        except ImageError as error:
            crops.append({"box": [0, 0, 1, 1], "problem": str(error)})
    return crops


def _edits(cards: Any) -> tuple[list[list[str]], int | None]:
    """Return the rows of the cards and the index of the removed image, from the browser's unchecked value."""
    value = cards if isinstance(cards, dict) else {}
    rows = [[str(cell or "") for cell in row[:3]] for row in value.get("rows") or [] if isinstance(row, list)]
    removed = value.get("removed")
    usable = removed if isinstance(removed, int) and removed >= 0 else None
    return [[*row, "", ""][:3] for row in rows], usable
