"""The studio: train adapters, compare them and generate images in a browser.

`engine` is independent of gradio; `page`, `theme` and `tabs` form the page.
"""

from hra_diffusion.studio.engine.config import StudioConfig

__all__ = ["StudioConfig", "launch"]


def launch(config: StudioConfig) -> None:
    """Serve the studio until an interrupt.

    Raises:
        ConfigError: the host and port are unavailable.
        ModelError: the base is missing or incomplete.
        OutputError: the studio's folder cannot be written.
    """
    from hra_diffusion.studio.page import serve  # imports torch and gradio: not for --help

    serve(config)
