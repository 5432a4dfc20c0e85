"""Endpoints of images: generate, compare, grid, conditions, and the settings of a PNG."""

from typing import Any

import gradio as gr
from gradio import FileData

from hra_diffusion.errors import BusyError, ConfigError
from hra_diffusion.studio.api.endpoints import expose
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.grid import Axis, Grid
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import gallery_items, model_options, served_copy, stop_handler
from hra_diffusion.studio.tabs.settings import SETTINGS, Settings, handle_request, settings_from_request


def expose_images(session: Session, settings: Settings) -> None:
    """Add the endpoints of images."""
    options = model_options(session)
    images = gr.Gallery(label="images", type="filepath", format="png")
    seed, ignored = gr.Number(label="seed"), gr.JSON(label="ignored ends of the prompts")
    expose(
        "generate",
        handle_request(session, _generate),
        settings.components,
        [images, seed, ignored],
        **options,
    )
    expose("before_after", handle_request(session, _before_after), settings.components, images, **options)
    sheet = gr.File(label="sheet")
    axes = [gr.Textbox(label="x_axis"), gr.Textbox(label="x_values"), gr.Textbox(label="y_axis"), gr.Textbox()]
    handler = handle_request(session, _grid, "x_axis", "x_values", "y_axis", "y_values")
    expose("grid", handler, [*settings.components, *axes], [sheet, seed], **options)
    _expose_conditions(session, settings)
    expose("stop", stop_handler(session), [], None, queue=False)


def _generate(session: Session, request: GenerateRequest, client: str) -> tuple[Any, int, dict[str, str]]:
    """Generate images. Returns files that contain their settings, the seed, and the ignored ends of the prompts."""
    saved = _saved(session, request, client)
    return gallery_items(session, saved), request.seed, session.truncated_prompts(request)


def _before_after(session: Session, request: GenerateRequest, client: str) -> Any:
    """Generate an image without and with the adapters, from the same seed. Returns both files."""
    if not request.adapters:
        raise ConfigError("Before / after needs an adapter: choose one first.")
    variants = (request.single(0).without_adapters(), request.single(0))
    return gallery_items(session, [image for variant in variants for image in _saved(session, variant, client)])


def _grid(
    session: Session, request: GenerateRequest, client: str, x_axis: str, x_values: str, y_axis: str, y_values: str
) -> tuple[str, int]:
    """Generate a grid of two settings. Returns the labeled sheet, and the seed of the cells without one of their own.

    The axes are strength, adapter, checkpoint, prompt, seed, steps, guidance and scheduler. Values are separated by
    commas, prompts by lines.
    """
    grid = Grid.from_request(request, Axis.parse(x_axis, x_values), Axis.parse(y_axis, y_values))
    images = [event.image for event in session.generate_grid(grid, client) if isinstance(event, SavedImage)]
    if len(images) < sum(map(len, grid.rows)):
        raise BusyError("The grid was stopped before its last image.")
    return str(session.save_grid(grid.compose(images), request)), request.seed


def _expose_conditions(session: Session, settings: Settings) -> None:
    """Add the endpoints of a control's condition and of a PNG's settings."""

    def annotate(
        adapters: list[Any] | None, control_image: str | None, annotator: str, width: float, height: float
    ) -> str:
        """Annotate a control image for the control among the adapters. Returns the condition's file."""
        return served_copy(session, session.annotate(adapters, control_image, annotator, width, height))

    inputs = [settings.adapters, settings.control_image, settings.annotator, settings.width, settings.height]
    expose("annotate", annotate, inputs, gr.File(label="condition"))

    def restore(png: str) -> tuple[dict[str, Any], list[str]]:
        """Load the settings of a PNG. Returns the settings by the parameters of /generate, and what was left out."""
        request, changes = session.restore(png)
        values = dict(zip(SETTINGS, settings_from_request(session, request), strict=True))
        for name in ("image", "mask_image", "control_image"):
            values[name] = values[name] and FileData(path=values[name]).model_dump()
        return values, changes

    outputs = [gr.JSON(label="settings"), gr.JSON(label="changes")]
    expose("restore", restore, [gr.File(label="png", file_types=[".png"])], outputs)


def _saved(session: Session, request: GenerateRequest, client: str) -> list[SavedImage]:
    return [event for event in session.generate(request, client) if isinstance(event, SavedImage)]
