"""Helpers of all tabs: error messages, API endpoints, served files and small pieces of HTML."""

import base64
import functools
import html
import inspect
import io
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.processing_utils import save_file_to_cache
from PIL import Image

from hra_diffusion.errors import HRAError
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import DECODING, read_upload

logger = logging.getLogger(__name__)

_FOLDERS = re.compile(r"(?<![\w:/.~])/(?:[^\s/'\"“”]+/)+")
_MAX_QUOTED = 160


@contextmanager
def gradio_errors() -> Iterator[None]:
    """Turn errors into messages of the page and the API; unexpected errors are logged and give a general message.

    Messages are escaped, since they may quote user input, and contain no folders of the server.
    """
    try:
        yield
    except HRAError as error:
        raise user_error(strip_folders(str(error))) from error
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("Unexpected error.")
        raise user_error("Unexpected error: see the studio's log.") from error


def user_error(text: str) -> gr.Error:
    """Return an error with an escaped message; gradio does not log it."""
    return gr.Error(html.escape(text, quote=False), duration=12, print_exception=False)


def strip_folders(text: str) -> str:
    """Remove the folders of absolute paths from a text."""
    return _FOLDERS.sub("", text)


def reports_errors(
    handler: Callable[..., Any], errors: Callable[[], AbstractContextManager[None]] = gradio_errors
) -> Callable[..., Any]:
    """Wrap a handler, a function or a generator function, in the context of its error messages."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def wrapped_generator(*values: Any, **keywords: Any) -> Iterator[Any]:
            with errors():
                yield from handler(*values, **keywords)

        return wrapped_generator

    @functools.wraps(handler)
    def wrapped(*values: Any, **keywords: Any) -> Any:
        with errors():
            return handler(*values, **keywords)

    return wrapped


def named_parameters(handler: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Give a handler of positional values and a gr.Request the parameter names of the API; return it.

    The default of a parameter is None: the API then takes the component's value, or None without one.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=None) for name in names]
    client = inspect.Parameter("client", kind, default=None, annotation=gr.Request)
    handler.__signature__ = inspect.Signature([*parameters, client])  # pyright: ignore[reportFunctionMemberAccess]
    handler.__annotations__ = {"client": gr.Request}
    return handler


def skip_preprocessing(*inputs: gr.components.Component) -> None:
    """Let inputs pass their values on unchecked, images as paths: `GenerateRequest` checks the values."""
    for component in inputs:
        component.preprocess = _raw_value


def _raw_value(payload: Any) -> Any:
    if not isinstance(payload, ImageData):
        return payload
    if payload.path is None:  # a URL alone, which gradio has not checked
        raise user_error("An image must be a file: upload it.")
    return payload.path


def client_id(request: gr.Request | None) -> str:
    """Return the id of a page or API client; without a session, a new random id."""
    return getattr(request, "session_hash", None) or secrets.token_hex(8)


def stop_handler(session: Session) -> Callable[[gr.Request], None]:
    """Return a handler that stops the image generation of its client."""

    def stop(client: gr.Request) -> None:
        """Stop the image generation of this client, within one step."""
        session.stop(client_id(client))

    return stop


def served_copy(session: Session, path: Path) -> str:
    """Copy a file of the studio into the cache, under a URL that cannot be guessed; return the copy's path."""
    return save_file_to_cache(path, cache_dir=str(session.cache))


def gallery_items(session: Session, saved: list[SavedImage]) -> list[tuple[str, str]]:
    """Return files and captions, the seeds, for a gallery."""
    return [(served_copy(session, image.path), f"seed {image.request.seed}") for image in saved]


def model_options(session: Session) -> dict[str, Any]:
    """Return the options of all generating events; their limit is above the queue's, so that the queue refuses."""
    return {"concurrency_limit": session.config.max_waiting + 4, "concurrency_id": "model"}


def data_url(image: Image.Image | Path | bytes, side: int = 256) -> str:
    """Return a thumbnail as a data URL.

    Args:
        image: an image, the path of one, or the bytes of a JPEG file, which are used unchanged.
        side: longest side of the thumbnail, in pixels.

    Raises:
        ImageError: the file is damaged.
    """
    if isinstance(image, Path):
        with DECODING:
            return data_url(read_upload(image), side)
    if isinstance(image, Image.Image):
        small = image.convert("RGB")
        small.thumbnail((side, side))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=88)
        image = file.getvalue()
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def thumbnail_url(image: Path | None, side: int) -> str:
    """Return a thumbnail as a data URL; "" without an image or for a damaged one."""
    try:
        return data_url(image, side) if image else ""
    except HRAError:
        return ""


def format_duration(seconds: float) -> str:
    """Format a duration: "a moment", "40 s", "3 min" or "2.5 h"."""
    if seconds < 1:
        return "a moment"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def note(text: str, kind: str = "plain") -> str:
    """Return a paragraph of escaped text as HTML; "" for an empty text."""
    return f'<p class="note {kind}">{html.escape(text)}</p>' if text else ""


def quote_start(text: str) -> str:
    """Return a text's first characters, escaped, as a quotation in HTML."""
    return f"<q>{html.escape(text[:_MAX_QUOTED])}{'…' * (len(text) > _MAX_QUOTED)}</q>"


def empty_state(title: str, text: str, extra_html: str = "") -> str:
    """Return the HTML of an empty area: its purpose and the first thing to do."""
    return f'<div class="empty"><b>{html.escape(title)}</b><span>{html.escape(text)}</span>{extra_html}</div>'


def heading(text: str) -> None:
    """Add a heading to the page."""
    gr.HTML(f'<h2 class="heading">{html.escape(text)}</h2>')
