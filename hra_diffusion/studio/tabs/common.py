"""What all tabs share: who asks, how errors are shown, and how the settings' values become one typed request."""

import base64
import functools
import html
import inspect
import io
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.processing_utils import save_file_to_cache
from PIL import Image

from hra_diffusion.errors import HRAError
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import read_upload

logger = logging.getLogger(__name__)

NEW_SEED_BELOW = 2**31
_FOLDERS = re.compile(r"(?<![\w:/.~])/(?:[^\s/'\"“”]+/)+")

SETTINGS = (
    "prompt",
    "negative_prompt",
    "adapters",
    "combine",
    "steps",
    "guidance_scale",
    "width",
    "height",
    "scheduler",
    "seed",
    "new_seed",
    "count",
    "image",
    "image_strength",
    "control_image",
    "annotator",
    "control_start",
    "control_end",
)
"""Names of the settings, for the page and the API, in the order of their components."""


@contextmanager
def errors_shown() -> Iterator[None]:
    """Turn errors into messages on the page and of the API, others than the project's into one that says no more.

    What they quote cannot become HTML, and folders of the server's are left out: whoever sent files knows their names.
    """
    try:
        yield
    except HRAError as error:
        raise told(without_folders(str(error))) from error
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("This was not foreseen.")
        raise told("Something went wrong that was not foreseen: the studio's log says what.") from error


def told(text: str) -> gr.Error:
    """Return an error that is shown as it is, and not logged."""
    return gr.Error(html.escape(text, quote=False), duration=12, print_exception=False)


def without_folders(text: str) -> str:
    """Leave out the folders of absolute paths."""
    return _FOLDERS.sub("", text)


def shown(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let a handler's errors be shown; for functions and generators."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def going_on(*values: Any, **named: Any) -> Iterator[Any]:
            with errors_shown():
                yield from handler(*values, **named)

        return going_on

    @functools.wraps(handler)
    def once(*values: Any, **named: Any) -> Any:
        with errors_shown():
            return handler(*values, **named)

    return once


def named(handler: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Return a handler of many values, last of them the asker, whose parameters have names for the API.

    None is their default: the API then takes the component's value, or None where there is none.
    """
    called = shown(handler)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=None) for name in names]
    asker = inspect.Parameter("asker", kind, default=None, annotation=gr.Request)
    called.__signature__ = inspect.Signature([*parameters, asker])  # pyright: ignore[reportFunctionMemberAccess]
    called.__annotations__ = {"asker": gr.Request}
    return called


def as_sent(*inputs: gr.components.Component) -> None:
    """Let inputs hand on what they are sent, images their file's path: whoever uses it says what is wrong with it."""
    for each in inputs:
        each.preprocess = _as_sent


def _as_sent(payload: Any) -> Any:
    if not isinstance(payload, ImageData):
        return payload
    if payload.path is None:  # an address alone: nobody has checked where it leads
        raise told("An image must be a file: upload it.")
    return payload.path


def with_request(session: Session, handler: Callable[..., Iterator[Any]], *extra: str) -> Callable[..., Iterator[Any]]:
    """Return a handler of the settings' values for one of a typed request: ``handler(request, client, *extra)``."""

    @functools.wraps(handler)
    def called(*values: Any) -> Iterator[Any]:
        *said, asker = values
        request = request_of(session, dict(zip(SETTINGS, said, strict=False)))
        yield from handler(request, client_of(asker), *said[len(SETTINGS) :])

    return named(called, *SETTINGS, *extra)


def request_of(session: Session, values: dict[str, Any]) -> GenerateRequest:
    """Make the request that the settings say; raises ConfigError, or ImageError for the image to start from."""
    if values.get("new_seed"):
        values["seed"] = secrets.randbelow(NEW_SEED_BELOW)
    if image := values.get("image"):
        values["image"] = session.uploads.keep(read_upload(Path(image)))
    request = GenerateRequest.of(values)
    if values.get("control_image"):
        request = session.following(request, Path(values["control_image"]), values["annotator"])
    return request


def client_of(request: gr.Request | None) -> str:
    """Who asks: a page, or a client of the API. One without a session is nobody else."""
    return getattr(request, "session_hash", None) or secrets.token_hex(8)


def served(session: Session, path: Path) -> str:
    """Return a copy of one of the studio's files that browsers may fetch; its address cannot be guessed."""
    return save_file_to_cache(path, cache_dir=str(session.cache))


def data_url(image: Image.Image | Path | bytes, side: int = 256) -> str:
    """Return a small image that stands in the page itself; bytes are those of a JPEG file."""
    if isinstance(image, Path):
        with Image.open(image) as opened:
            return data_url(opened.convert("RGB"), side)
    if isinstance(image, Image.Image):
        small = image.convert("RGB")
        small.thumbnail((side, side))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=88)
        image = file.getvalue()
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def in_words(seconds: float) -> str:
    """Say a time."""
    if seconds < 1:
        return "a moment"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def note(text: str, kind: str = "plain") -> str:
    """A line of text for the page, escaped."""
    return f'<p class="note {kind}">{html.escape(text)}</p>' if text else ""


def empty(title: str, text: str, more: str = "") -> str:
    """What stands where there is nothing yet: what this place is for, and what to do; ``more`` is HTML."""
    return f'<div class="empty"><b>{html.escape(title)}</b><span>{html.escape(text)}</span>{more}</div>'


def heading(text: str) -> None:
    """Put a heading here."""
    gr.HTML(f'<h2 class="heading">{html.escape(text)}</h2>')


def stopper(session: Session) -> Callable[[gr.Request], None]:
    """Return what ends whatever its caller is having drawn."""

    def stop(asker: gr.Request) -> None:
        """Stop what this client is having drawn, within a step."""
        session.stop(client_of(asker))

    return stop
