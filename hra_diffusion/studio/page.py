"""The page: header, tabs, and how it is served. Gradio's folders lie in the studio's, and nothing is reported home."""

import html
import logging
import os
import socket
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.session import DAY, Session
from hra_diffusion.studio.engine.uploads import MAX_BYTES
from hra_diffusion.studio.tabs import compare, generate, library, train
from hra_diffusion.studio.tabs.common import stopper, told
from hra_diffusion.studio.theme import CSS, HEAD, make_theme

logger = logging.getLogger(__name__)

_MARK = (
    '<svg viewBox="0 0 32 32" width="32" height="32" aria-hidden="true"><rect width="32" height="32" rx="9"/>'
    '<path d="M7 25 25 7" stroke-dasharray="2.5 3"/><path d="M7 25V11"/><path d="M7 25H21"/></svg>'
)


def serve(config: StudioConfig) -> None:
    """Open the studio and serve it until it is interrupted.

    Raises:
        ConfigError: nothing can listen at this host and port.
        ModelError: there is no such base, or it is incomplete.
        OutputError: the studio's folder cannot be written.
    """
    warn_of_open_doors(config)
    check_address(config.host, config.port)
    session = Session(config)
    page = build_page(session)
    try:
        page.launch(**launch_options(session), prevent_thread_lock=True)
    except OSError as error:
        raise ConfigError(f"The page cannot be served: {error}") from error
    session.model.warm_up()
    page.block_thread()


def check_address(host: str, port: int | None) -> None:
    """Raise ConfigError where nothing can listen at a host and port; without a port, any will do."""
    try:
        for family, *_, address in socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[:1]:
            socket.create_server(address[:2], family=family).close()
    except OSError as error:
        at = f"{host}, port {port}" if port else host
        raise ConfigError(f"Nothing can listen at {at} ({error.strerror}): choose another --host or --port.") from error


def warn_of_open_doors(config: StudioConfig) -> None:
    """Say so where anybody could come in."""
    if config.share and not config.auth:
        logger.warning(
            "--share without --auth: whoever has the address can draw, teach and delete here. Add --auth USER:PASSWORD."
        )


class Page(gr.Blocks):
    """A page that says so when it cannot read what it was sent."""

    async def preprocess_data(self, block_fn: Any, *values: Any, **named: Any) -> list[Any]:
        """See gradio's, whose other errors are for the log."""
        try:
            return await super().preprocess_data(block_fn, *values, **named)
        except gr.Error:
            raise
        except Exception as error:
            raise told(
                f"/{block_fn.api_name} cannot read one of the values that it was sent: see “Use via API” at the foot "
                "of the page for what each of them is."
            ) from error


def build_page(session: Session) -> gr.Blocks:
    """Put the page together."""
    os.environ["GRADIO_TEMP_DIR"] = str(session.cache)
    page = Page(title="HRA studio", analytics_enabled=False, delete_cache=(3600, DAY), fill_width=True)
    with page:
        gr.HTML(_header(session), elem_id="header")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Generate", id="generate"):
                settings = generate.build(session)
            with gr.Tab("Compare", id="compare") as tab:
                compare.build(session, settings, tab)
            with gr.Tab("Teach", id="teach", render_children=True):
                teaching = gr.Column()
            with gr.Tab("Library", id="library", render_children=True):
                cards = library.build(session, settings)
        with teaching:
            train.build(session, settings, cards)
        page.unload(stopper(session))
        gr.api(_adapters(session), api_name="adapters")
    for endpoint in page.fns.values():  # tools of --mcp are called as functions are
        if endpoint.api_visibility == "public":
            endpoint.fn.__name__ = endpoint.api_name
    page.queue(max_size=4 * session.config.max_waiting)
    return page


def launch_options(session: Session) -> dict[str, Any]:
    """What `Blocks.launch` is to be told."""
    config = session.config
    user, _, password = (config.auth or "").partition(":")
    return {
        "server_name": config.host,
        "server_port": config.port,
        "auth": [(user, password)] if config.auth else None,
        "share": config.share,
        "inbrowser": config.open,
        "mcp_server": config.mcp,
        "theme": make_theme(),
        "css": CSS,
        "head": HEAD,
        "max_file_size": MAX_BYTES * 20,
        "footer_links": ["api"],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "show_error": False,
        "blocked_paths": [str(path) for path in (session.runs.folder, session.library.folder, session.uploads.folder)],
    }


def _header(session: Session) -> str:
    return (
        f"<header>{_MARK}<div><h1>HRA studio</h1><p>on {html.escape(session.model.base.name)}</p></div>"
        '<button id="look" type="button" aria-label="Switch between light and dark" title="Light or dark">'
        '<svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true"><circle cx="12" cy="12" r="8"/>'
        '<path d="M12 4a8 8 0 0 1 0 16z"/></svg></button></header>'
    )


def _adapters(session: Session) -> Any:
    def adapters() -> list[dict[str, Any]]:
        """The adapters of the library."""
        session.adopt_finished()
        return [
            {
                "name": entry.name,
                "base": entry.base,
                "rank": entry.rank,
                "trigger": entry.trigger,
                "annotator": entry.annotator,
            }
            for entry in session.library.entries()
        ]

    return adapters
