"""Teach a diffusion model to follow a condition: ControlNet-style training with Householder Reflection Adaptation.

    python train_controlnet_hra.py
    python train_controlnet_hra.py --train_data_dir photos/scenes --annotator canny \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Without arguments the embedded base learns to follow edges. --help lists all settings. The result is a folder: adapter/
with the adapter and the condition encoder, config.toml, log.jsonl, before_after.png.
"""

import sys

from hra_diffusion.cli.main import run
from hra_diffusion.cli.train_control import main

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
