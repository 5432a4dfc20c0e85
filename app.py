"""Open the studio in a browser: ``python app.py``; ``--help`` lists the options."""

import sys

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.main import run
from hra_diffusion.studio import StudioConfig, launch

if __name__ == "__main__":
    sys.exit(run(lambda arguments: launch(parse_settings(StudioConfig, arguments, prog="app.py")), sys.argv[1:]))
