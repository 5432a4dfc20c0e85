"""The Compare tab: an X/Y grid over two settings; all other settings are those of the Generate tab."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.generation.events import Progress
from hra_diffusion.studio.engine.generation.requests import GenerateRequest, parse_adapter_uses
from hra_diffusion.studio.engine.images.grid import AXES, FINAL, NO_ADAPTER, Axis, Grid
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import data_url, empty_state, model_options, note, served_copy, stop_handler
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.loading_settings import GenerateTab, load_settings
from hra_diffusion.studio.tabs.settings import handle_request

_SCRIPT = Path(__file__).parents[1] / "grid_cells.js"
_NO_GRID = empty_state(
    "No grid yet", "Choose two settings and their values. All other settings are those of the Generate tab."
)
_HELP = (
    "Separate values with commas, and write one prompt per line; {prompt} stands for the prompt under Generate. "
    f"The adapter “{NO_ADAPTER}” is the base model. Checkpoints are steps of the adapter's training job, or “{FINAL}”. "
    "Click a cell to enlarge it."
)
_EXAMPLE_VALUES = {
    "strength": "0, 0.5, 1, 1.5",
    "adapter": NO_ADAPTER,
    "seed": "1, 2, 3",
    "prompt": "{prompt}\n{prompt} in the snow",
    "steps": "10, 25, 50",
    "guidance": "4, 7.5, 10",
    "interpolation": "0, 0.25, 0.5, 0.75, 1",
}
_MAX_EXAMPLES = 4


@dataclass(frozen=True)
class _GridPanel:
    """The components of the tab."""

    prompt: gr.HTML
    """The prompt and the adapters of all cells."""
    x_axis: gr.Dropdown
    x_values: gr.Textbox
    y_axis: gr.Dropdown
    y_values: gr.Textbox
    generate: gr.Button
    stop: gr.Button
    table: gr.HTML
    tools: gr.Row
    download: gr.DownloadButton
    cell: gr.Column
    """The enlarged cell, and the button that uses its settings."""
    image: gr.Image
    use_settings: gr.Button
    selected: gr.State
    """Name of the selected cell's image."""


def build_compare_tab(session: Session, generate: GenerateTab, tab: gr.Tab) -> None:
    """Build the tab; selecting it updates the displayed prompt and adapters."""
    panel, settings = _grid_panel(session), generate.settings
    axes = [panel.x_axis, panel.x_values, panel.y_axis, panel.y_values]
    listen_busy(
        panel.generate,
        "Generating…",
        handle_request(session, _generate_grid, "x_axis", "x_values", "y_axis", "y_values"),
        [*settings.components, *axes],
        [panel.table, panel.download, panel.tools, panel.cell],
        **model_options(session),
    )
    listen(panel.stop.click, stop_handler(session), queue=False)
    listen(tab.select, _shared_settings, [settings.prompt, settings.adapters], panel.prompt, queue=False)

    def example_values(kind: str, adapters: list[dict[str, Any]] | None, base: str | None) -> str:
        return _example_values(session, kind, adapters, base)

    for axis, values in ((panel.x_axis, panel.x_values), (panel.y_axis, panel.y_values)):
        listen(axis.input, example_values, [axis, settings.adapters, settings.base], values, queue=False)
    _connect_cells(session, generate, panel)


def _connect_cells(session: Session, generate: GenerateTab, panel: _GridPanel) -> None:
    """Enlarge a cell on a click, and load its settings into the Generate tab."""

    def enlarge(event: gr.EventData) -> tuple[Any, str, Any]:
        image = session.image_store.find(event._data.get("image"))
        return served_copy(session, image.path), image.name, gr.update(visible=True)

    def selected_png(name: str | None) -> Path:
        return session.image_store.find(name).path

    listen(panel.table.cell, enlarge, None, [panel.image, panel.selected, panel.cell], queue=False)
    load_settings(session, generate, panel.use_settings.click, selected_png, panel.selected)


def _example_values(session: Session, kind: str, adapters: list[dict[str, Any]] | None, base: str | None) -> str:
    """Return example values of an axis: existing adapters and checkpoints, and schedulers of the chosen base."""
    if kind == "adapter":
        return ", ".join([NO_ADAPTER, *(entry.name for entry in session.library.entries()[:_MAX_EXAMPLES])])
    if kind == "scheduler":
        return ", ".join(session.worker.bases.get(base).schedulers[: _MAX_EXAMPLES + 1])
    if kind == "checkpoint":
        uses = parse_adapter_uses(adapters or [])
        steps = session.library.checkpoints.steps(uses[0].name) if uses else []
        return ", ".join([*steps[-_MAX_EXAMPLES:], FINAL])
    return _EXAMPLE_VALUES.get(kind, _EXAMPLE_VALUES["seed"])


def _grid_panel(session: Session) -> _GridPanel:
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=4, min_width=300, elem_classes="side"):
            prompt = gr.HTML(
                _shared_settings(session.default_request.prompt, []), label="prompt", elem_id="compared-prompt"
            )
            with gr.Group(elem_classes="panel"):
                x_axis = gr.Dropdown(list(AXES), value="strength", label="Columns (X axis)", elem_id="x-axis")
                x_values = gr.Textbox(_EXAMPLE_VALUES["strength"], label="Column values", lines=2, elem_id="x-values")
            with gr.Group(elem_classes="panel"):
                y_axis = gr.Dropdown(list(AXES), value="seed", label="Rows (Y axis)", elem_id="y-axis")
                y_values = gr.Textbox(_EXAMPLE_VALUES["seed"], label="Row values", lines=2, elem_id="y-values")
            gr.HTML(note(_HELP))
            with gr.Row(elem_classes="actions"):
                generate = gr.Button("Generate grid", variant="primary", elem_id="generate-grid", scale=3)
                stop = gr.Button("Stop", elem_id="stop-grid", scale=1, min_width=90)
        with gr.Column(scale=8, min_width=320, elem_classes="results"):
            table = gr.HTML(_NO_GRID, label="grid", elem_id="grid", js_on_load=_SCRIPT.read_text(encoding="utf-8"))
            with gr.Row(visible=False, elem_classes="tools") as tools:
                download = gr.DownloadButton("Download the grid", elem_id="download-grid", size="md")
            with gr.Column(visible=False, elem_id="grid-cell") as cell:
                image = gr.Image(
                    label="Cell",
                    type="filepath",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="cell-image",
                )
                use_settings = gr.Button("Use settings", size="sm", elem_id="use-cell")
    selected = gr.State(None)
    grid = (x_axis, x_values, y_axis, y_values, generate, stop, table, tools, download)
    return _GridPanel(prompt, *grid, cell, image, use_settings, selected)


def _generate_grid(
    session: Session, request: GenerateRequest, client: str, x_axis: str, x_values: str, y_axis: str, y_values: str
) -> Iterator[Any]:
    """Generate a grid. Returns its HTML, and the labeled grid as an image file."""
    grid = Grid.from_request(request, Axis.parse(x_axis, x_values), Axis.parse(y_axis, y_values))
    cells: list[SavedImage] = []
    thumbnails: list[str] = []
    seed = "" if "seed" in (x_axis, y_axis) else note(f"Seed {request.seed}")
    hidden = gr.update(visible=False)
    yield seed + _table(grid, cells, thumbnails), gr.skip(), hidden, hidden
    for event in session.generate_grid(grid, client):
        if isinstance(event, SavedImage):
            cells.append(event)
            thumbnails.append(data_url(event.image))
        preview = data_url(event.preview) if isinstance(event, Progress) else None
        yield seed + _table(grid, cells, thumbnails, preview), gr.skip(), gr.skip(), gr.skip()
    if len(cells) < sum(map(len, grid.rows)):
        yield note("Stopped.") + _table(grid, cells, thumbnails), gr.skip(), gr.skip(), gr.skip()
        return
    path = session.save_grid(grid.compose([cell.image for cell in cells]), request)
    yield seed + _table(grid, cells, thumbnails), str(path), gr.update(visible=True), gr.skip()


def _shared_settings(prompt: str, adapters: list[dict[str, Any]] | None) -> str:
    """Return the HTML of the settings shared by all cells, with a warning if strengths have no adapter."""
    names = ", ".join(use.name for use in parse_adapter_uses(adapters or [])) or "no adapter"
    line = f'<p class="note compared">“{html.escape(str(prompt)[:160])}” <b>{html.escape(names[:160])}</b></p>'
    warning = note("Choose an adapter under Generate to compare its strengths.", "warning")
    return line if adapters else line + warning


def _table(grid: Grid, saved: Sequence[SavedImage], thumbnails: list[str], preview: str | None = None) -> str:
    """Return the HTML of a grid: finished cells, the preview of the current cell, and empty cells."""
    columns = grid.labels(grid.x)
    head = "".join(f'<th scope="col">{html.escape(label[:80])}</th>' for label in columns)
    sources = [*thumbnails, preview]
    rows: list[str] = []
    for row, row_label in enumerate(grid.labels(grid.y)):
        cells: list[str] = []
        for column, column_label in enumerate(columns):
            index = row * len(columns) + column
            source = sources[index] if index < len(sources) else None
            label = html.escape(f"{column_label}, {row_label}"[:160], quote=True)
            current = ' class="current"' if index == len(thumbnails) else ""
            content = f'<img src="{source}" alt="{label}">' if source else "<i></i>"
            if index < len(saved):
                name = html.escape(saved[index].name, quote=True)
                content = f'<button type="button" data-image="{name}" aria-label="Enlarge {label}">{content}</button>'
            cells.append(f"<td{current}>{content}</td>")
        rows.append(f'<tr><th scope="row">{html.escape(row_label[:120])}</th>{"".join(cells)}</tr>')
    status = f'<p class="note" role="status">{len(thumbnails)} of {len(grid.rows) * len(columns)} images</p>'
    return f'<div class="grid"><table><tr><td></td>{head}</tr>{"".join(rows)}</table></div>{status}'
