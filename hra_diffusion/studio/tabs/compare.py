"""Compare: a grid over two settings, drawn cell by cell; everything else is what Generate says."""

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.events import Progress
from hra_diffusion.studio.engine.grid import AXES, NO_ADAPTER, Axis, Grid
from hra_diffusion.studio.engine.requests import GenerateRequest, adapter_uses
from hra_diffusion.studio.engine.session import Saved, Session
from hra_diffusion.studio.tabs.common import data_url, empty, note, shown, stopper, with_request
from hra_diffusion.studio.tabs.settings import Settings

_NOTHING_YET = empty(
    "No grid yet", "Choose two settings and their values. Prompt, adapters and the rest are those under Generate."
)
_EXAMPLES = {
    "strength": "0, 0.5, 1, 1.5",
    "adapter": NO_ADAPTER,
    "seed": "1, 2, 3",
    "prompt": "{prompt}\n{prompt} in the snow",
}


def build(session: Session, settings: Settings, tab: gr.Tab) -> None:
    """Put the tab together; it says what Generate says whenever it is looked at."""
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=4, min_width=300, elem_classes="side"):
            subject = gr.HTML(_subject(session.default_request.prompt, []), label="subject", elem_id="compared")
            with gr.Group(elem_classes="panel"):
                x_axis = gr.Dropdown(list(AXES), value="strength", label="Columns", elem_id="x-axis")
                x_values = gr.Textbox(_EXAMPLES["strength"], label="Values of the columns", lines=2, elem_id="x-values")
            with gr.Group(elem_classes="panel"):
                y_axis = gr.Dropdown(list(AXES), value="seed", label="Rows", elem_id="y-axis")
                y_values = gr.Textbox(_EXAMPLES["seed"], label="Values of the rows", lines=2, elem_id="y-values")
            gr.HTML(
                note(
                    "With commas between them; prompts one a line, {prompt} standing for yours. As an adapter, "
                    f"“{NO_ADAPTER}” is the plain base."
                )
            )
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Draw the grid", variant="primary", elem_id="draw-grid", scale=3)
                end = gr.Button("Stop", elem_id="stop-grid", scale=1, min_width=90)
        with gr.Column(scale=8, min_width=320, elem_classes="canvas"):
            table = gr.HTML(_NOTHING_YET, label="grid", elem_id="grid")
            with gr.Row(visible=False, elem_classes="tools") as ready:
                sheet = gr.DownloadButton("Download the sheet", elem_id="sheet", size="md")

    def compare(
        request: GenerateRequest, client: str, x_axis: str, x_values: str, y_axis: str, y_values: str
    ) -> Iterator[Any]:
        """Draw a grid. Returns it as HTML, and the labeled sheet as a file."""
        grid = Grid.of(request, Axis.read(x_axis, x_values), Axis.read(y_axis, y_values))
        done: list[Saved] = []
        small: list[str] = []
        seed = "" if "seed" in (x_axis, y_axis) else note(f"Of seed {request.seed}.")
        yield seed + _table(grid, small, None), gr.skip(), gr.update(visible=False)
        for event in session.draw_grid(grid, client):
            if isinstance(event, Saved):
                done.append(event)
                small.append(data_url(event.image))
            preview = data_url(event.preview) if isinstance(event, Progress) else None
            yield seed + _table(grid, small, preview), gr.skip(), gr.skip()
        if len(done) < sum(map(len, grid.rows)):
            yield note("Stopped.") + _table(grid, small, None), gr.skip(), gr.skip()
            return
        path = session.save_sheet(grid.sheet([each.image for each in done]), request)
        yield seed + _table(grid, small, None), str(path), gr.update(visible=True)

    def example(kind: str) -> str:
        if kind == "adapter":
            return ", ".join([NO_ADAPTER, *(entry.name for entry in session.library.entries()[:4])])
        return _EXAMPLES[kind if kind in _EXAMPLES else "seed"]

    prompt, adapters = settings.inputs[0], settings.picker
    tab.select(_subject, [prompt, adapters], subject, api_visibility="private", queue=False, show_progress="hidden")
    axes = [x_axis, x_values, y_axis, y_values]
    go.click(
        with_request(session, compare, "x_axis", "x_values", "y_axis", "y_values"),
        [*settings.inputs, *axes],
        [table, sheet, ready],
        api_name="compare",
        show_progress="hidden",
        concurrency_limit=session.config.max_waiting + 4,
        concurrency_id="model",
    )
    end.click(stopper(session), api_visibility="private", queue=False)
    for axis, values in ((x_axis, x_values), (y_axis, y_values)):
        axis.input(example, axis, values, api_visibility="private", queue=False)


@shown
def _subject(prompt: str, adapters: list[dict[str, Any]] | None) -> str:
    """What every cell shares, and what to do where strengths have nothing to act on."""
    names = ", ".join(use.name for use in adapter_uses(adapters or [])) or "no adapter"
    said = f'<p class="note compared">“{html.escape(str(prompt)[:160])}” <b>{html.escape(names[:160])}</b></p>'
    return said if adapters else said + note("Choose an adapter under Generate to compare its strengths.", "warning")


def _table(grid: Grid, images: list[str], preview: str | None) -> str:
    """The grid so far: small images in order, the one that is being drawn, and room for the rest."""
    columns = len(grid.x.values)
    head = "".join(f'<th scope="col">{html.escape(label[:80])}</th>' for label in grid.labels(grid.x))
    rows: list[str] = []
    for number, label in enumerate(grid.labels(grid.y)):
        cells: list[str] = []
        for column in range(columns):
            index = number * columns + column
            source = images[index] if index < len(images) else preview if index == len(images) else None
            said = html.escape(f"{grid.labels(grid.x)[column]}, {label}"[:160], quote=True)
            going = ' class="going"' if index == len(images) else ""
            inside = f'<img src="{source}" alt="{said}">' if source else "<i></i>"
            cells.append(f"<td{going}>{inside}</td>")
        rows.append(f'<tr><th scope="row">{html.escape(label[:120])}</th>{"".join(cells)}</tr>')
    total = len(grid.rows) * columns
    status = f'<p class="note" role="status">{len(images)} of {total} images</p>'
    return f'<div class="grid"><table><tr><td></td>{head}</tr>{"".join(rows)}</table></div>{status}'
