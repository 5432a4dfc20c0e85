"""Open the studio in a browser: ``python app.py``; ``--help`` lists the options. It is ``hra-diffusion studio``."""

import sys
from functools import partial

from hra_diffusion.cli.main import run
from hra_diffusion.cli.studio import main

if __name__ == "__main__":
    sys.exit(run(partial(main, prog="app.py"), sys.argv[1:]))
