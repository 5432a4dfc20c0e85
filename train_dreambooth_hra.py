"""Teach a diffusion model a subject from a few images: DreamBooth with Householder Reflection Adaptation.

    python train_dreambooth_hra.py
    python train_dreambooth_hra.py --instance_data_dir photos/dog --instance_prompt "a photo of a sks dog" \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Without arguments it takes the embedded base and one of the subjects that come with it. --help lists all settings.
The result is a folder: adapter/, config.toml (which reproduces the run with --config), log.jsonl, before_after.png.
"""

import sys

from hra_diffusion.cli.main import run
from hra_diffusion.cli.train import main

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
