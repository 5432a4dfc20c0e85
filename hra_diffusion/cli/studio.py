"""``hra-diffusion studio``: the studio in a browser. app.py is the same command."""

from collections.abc import Sequence

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.studio import StudioConfig, launch


def main(arguments: Sequence[str], prog: str = "hra-diffusion studio") -> None:
    """Serve the studio until an interrupt."""
    launch(parse_settings(StudioConfig, arguments, prog=prog))
