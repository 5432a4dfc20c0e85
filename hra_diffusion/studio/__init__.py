"""The studio: train adapters, compare them and generate images in a browser.

`engine` is independent of gradio; `page`, `theme` and `tabs` form the page.
"""

import importlib

from hra_diffusion.errors import MissingExtraError
from hra_diffusion.studio.engine.config import StudioConfig

__all__ = ["StudioConfig", "launch"]


def launch(config: StudioConfig) -> None:
    """Serve the studio until an interrupt.

    Raises:
        ConfigError: the host and port are unavailable.
        MissingExtraError: gradio or OpenCV is not installed.
        ModelError: the base is missing or incomplete.
        OutputError: the studio's folder cannot be written.
    """
    try:
        importlib.import_module("gradio")
    except ImportError as error:
        raise MissingExtraError(f"The studio needs gradio ({error}): pip install 'hra-diffusion[studio]'.") from error
    from hra_diffusion.studio.page import serve  # imports torch and gradio: not for --help

    serve(config)
