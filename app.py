"""The studio in a browser: python app.py; --help lists what it can be told."""

import sys

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.main import run
from hra_diffusion.studio.config import StudioConfig


def main(arguments: list[str]) -> None:  # noqa: D103
    config = parse_settings(StudioConfig, arguments, prog="app.py")
    from hra_diffusion.studio.page import launch  # imports torch and gradio: not for --help

    launch(config)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
