"""The studio: teach, compare and use subjects in a browser.

What it does knows no gradio; `page`, `theme` and `tabs` show it.
"""

from hra_diffusion.studio.engine.config import StudioConfig

__all__ = ["StudioConfig", "launch"]


def launch(config: StudioConfig) -> None:
    """Open the studio and serve it until it is interrupted.

    Raises:
        ConfigError: nothing can listen at this host and port.
        ModelError: there is no such base, or it is incomplete.
        OutputError: the studio's folder cannot be written.
    """
    from hra_diffusion.studio.page import serve  # imports torch and gradio: not for --help

    serve(config)
