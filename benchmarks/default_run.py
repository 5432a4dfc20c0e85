"""Time and peak memory of the default run, with all imports: `python benchmarks/default_run.py`.

The project's limits on two CPU cores: 3 minutes, 2 GB.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        command = [sys.executable, "train_dreambooth_hra.py", "--output_dir", folder, *sys.argv[1:]]
        subprocess.run(command, cwd=PROJECT, check=True)
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{seconds:.0f} s (limit 180), {peak / 1e9:.2f} GB at most (limit 2)")
    sys.exit(seconds > 180 or peak > 2e9)


if __name__ == "__main__":
    main()
