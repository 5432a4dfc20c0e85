"""PEFT's own image benchmark with this project's plug-in: `python benchmarks/peft_plugin_image.py PEFT`.

    PEFT            a checkout of https://github.com/huggingface/peft, installed with pip install -e PEFT
    --no_plugin     PEFT's own arithmetic, to compare with

The experiment is `peft_experiments/hra/flux2-klein-radians`. It differs from PEFT's hra/flux2-klein-default in the
learning rate and the weight decay alone. PEFT's columns start with entries uniform in ±√(2/r), of root mean square
√(2/(3r)), so that a step of AdamW with the rate lr turns a layer by about 4 √r lr / √(2/(3r)) radians. At r = 32,
PEFT's 1e-4 is 0.016 radians, and 3.2e-4 is 0.05. Weight decay shortens columns, which changes no reflection.

PEFT's script needs a CUDA or XPU device and its own requirements.txt, and writes its result into its folders.
"""

import argparse
import os
import runpy
import shutil
import sys
from pathlib import Path

from hra_diffusion import peft_plugin

EXPERIMENT = Path(__file__).resolve().parent / "peft_experiments" / "hra" / "flux2-klein-radians"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peft", type=Path)
    parser.add_argument("--no_plugin", action="store_true")
    options = parser.parse_args()
    folder = options.peft / "method_comparison" / "image-gen"
    if not (folder / "run.py").is_file():
        sys.exit(f"{options.peft} has no method_comparison/image-gen/run.py: name a checkout of PEFT's repository.")
    name = EXPERIMENT.name + ("-no-plugin" if options.no_plugin else "")
    shutil.copytree(EXPERIMENT, folder / "experiments" / "hra" / name, dirs_exist_ok=True)
    if not options.no_plugin:
        peft_plugin.enable()
    os.chdir(folder)
    sys.path.insert(0, str(folder.resolve()))
    sys.argv = ["run.py", "-v", f"experiments/hra/{name}"]
    runpy.run_path("run.py", run_name="__main__")


if __name__ == "__main__":
    main()
