"""The page: its header, its tabs and its server. Gradio's files stay in the studio's folder; analytics are off."""

import html
import logging
import os
import socket
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.api import build_api
from hra_diffusion.studio.doors import Doors, is_loopback
from hra_diffusion.studio.engine.cache import remove_old_files_hourly
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import MAX_BYTES
from hra_diffusion.studio.login import LoginPage
from hra_diffusion.studio.tabs.common import stop_handler, user_error
from hra_diffusion.studio.tabs.compare import build_compare_tab
from hra_diffusion.studio.tabs.first_visit import base_knowledge
from hra_diffusion.studio.tabs.generate import build_generate_tab
from hra_diffusion.studio.tabs.images import build_images_tab
from hra_diffusion.studio.tabs.library import build_library_tab
from hra_diffusion.studio.tabs.memory import remember
from hra_diffusion.studio.tabs.train import build_train_tab
from hra_diffusion.studio.theme import CSS, HEAD, make_theme

logger = logging.getLogger(__name__)

SESSIONS = 500
"""Limit of the tabs and API clients whose state is kept, some 0.7 MB each; a client without a session is one more."""
_LOGO = Path(__file__).parent / "logo.svg"


def serve(config: StudioConfig) -> None:
    """Serve the studio until an interrupt.

    Raises:
        ConfigError: the host and port are not available.
        ModelError: the base does not exist or is incomplete.
        OutputError: the studio's folder is not writable.
    """
    check_address(config.host, config.port)
    warn_if_public(config)
    session = Session(config)
    page = build_page(session)
    try:
        page.launch(**launch_options(session), prevent_thread_lock=True)
    except OSError as error:
        raise ConfigError(f"The page cannot be served: {error}") from error
    session.worker.warm_up()
    remove_old_files_hourly(session.cache)
    page.block_thread()


def check_address(host: str, port: int | None) -> None:
    """Raise ConfigError for an unavailable host and port; without a port, any free port suffices."""
    try:
        for family, *_, address in socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[:1]:
            socket.create_server(address[:2], family=family).close()
    except OSError as error:
        at = f"{host}, port {port}" if port else host
        raise ConfigError(f"Nothing can listen at {at} ({error.strerror}): choose another --host or --port.") from error


def warn_if_public(config: StudioConfig) -> None:
    """Warn of an address that others reach without a password."""
    flag = "--share" if config.share else "" if is_loopback(config.host) else f"--host {config.host}"
    if flag and not config.credentials:
        logger.warning(
            "%s without --auth: anybody who reaches the address can generate, train and delete. Add --auth "
            "USER:PASSWORD, or --auth_file.",
            flag,
        )


class Page(gr.Blocks):
    """Blocks with a message for values that gradio cannot read."""

    async def preprocess_data(self, block_fn: Any, *values: Any, **keywords: Any) -> list[Any]:
        """Read the values of a request as gradio does; other errors than gr.Error become messages."""
        try:
            return await super().preprocess_data(block_fn, *values, **keywords)
        except gr.Error as error:
            error.print_exception = False  # gradio logs a traceback of its own refusals
            raise
        except Exception as error:
            raise user_error(
                f"/{block_fn.api_name} cannot read one of its parameters: “Use via API” at the foot of the page "
                "describes them."
            ) from error


def build_page(session: Session) -> gr.Blocks:
    """Build the page."""
    os.environ["GRADIO_TEMP_DIR"] = str(session.cache)
    page = Page(title="HRA studio", analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(_header(session), elem_id="header")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Generate", id="generate"):
                generate = build_generate_tab(session, tabs)
                settings = generate.settings
            with gr.Tab("Compare", id="compare") as tab:
                build_compare_tab(session, generate, tab)
            with gr.Tab("Images", id="images") as tab:
                build_images_tab(session, generate, tab)
            with gr.Tab("Train", id="train", render_children=True):
                train_column = gr.Column()
            with gr.Tab("Library", id="library", render_children=True):
                library = build_library_tab(session, settings)
        with train_column:
            training = build_train_tab(session, settings, library, tabs)
        remember(session, generate, training)
        build_api(session, settings, training)
        page.unload(stop_handler(session))
    for endpoint in page.fns.values():  # the names of MCP tools are those of the functions
        if endpoint.fn and endpoint.api_visibility == "public":
            endpoint.fn.__name__ = str(endpoint.api_name)
    page.queue(max_size=4 * session.config.max_waiting)
    return page


def launch_options(session: Session) -> dict[str, Any]:
    """Return the keyword arguments of `Blocks.launch`."""
    config = session.config
    private = (session.jobs.folder, session.library.folder, session.uploads.folder)
    return {
        "server_name": config.host,
        "server_port": config.port,
        "auth": [config.credentials] if config.credentials else None,
        "share": config.share,
        "root_path": config.root_path,
        "inbrowser": config.open,
        "mcp_server": config.mcp,
        "app_kwargs": {"middleware": [Middleware(Doors, config=config), Middleware(LoginPage)]},
        "favicon_path": str(_LOGO),
        "state_session_capacity": SESSIONS,
        "theme": make_theme(),
        "css": CSS,
        "head": HEAD,
        "max_file_size": MAX_BYTES * 20,
        "footer_links": ["api"],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "show_error": False,
        "blocked_paths": [str(path) for path in private],
    }


def _header(session: Session) -> str:
    base = html.escape(session.worker.base.name)
    return (
        f'<header>{_LOGO.read_text(encoding="utf-8")}<div><h1>HRA studio</h1><div class="tagline">Personalizes '
        f"diffusion models with HRA adapters. Base model: {base}. {base_knowledge(session)}</div></div>"
        '<button id="theme-switch" type="button" aria-label="Switch between light and dark" title="Light or dark">'
        '<svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true"><circle cx="12" cy="12" r="8"/>'
        '<path d="M12 4a8 8 0 0 1 0 16z"/></svg></button></header>'
    )
