"""Free disk space of the folders that commands write to, and the embedded base."""

import os

import numpy as np
import torch

from hra_diffusion.doctor.probes import Probes
from hra_diffusion.doctor.report import REPORT_ADVICE, Section
from hra_diffusion.formats.files import existing_part
from hra_diffusion.pipelines import generate_image, load_pipeline
from hra_diffusion.resources import DATA

_NEEDED = {"downloaded models": 10e9}
_ADVICE = {
    "downloaded models": "Free some, or set HF_HOME to a folder on another disk: SDXL has 7 GB.",
    "temporary files": "Free some, or set TMPDIR (on Windows TEMP) to a folder on another disk.",
    "working folder": "Free some, or give an --output_dir on another disk.",
}


def check_storage(probes: Probes, section: Section) -> None:
    """Report the free space of the folders that commands write to; the report does not name the folders."""
    for purpose, path in probes.folders().items():
        folder = existing_part(path)
        free = probes.free_space(folder)
        section.facts[purpose] = f"{free / 1e9:.1f} GB free"
        if free < _NEEDED.get(purpose, 2e9):
            section.warn(f"Only {free / 1e9:.1f} GB are free for {purpose}.", _ADVICE[purpose])
        if not os.access(folder, os.W_OK):
            section.facts[purpose] += ", not writable"
            section.warn(f"The folder of {purpose} is not writable.", "Change its permissions, or choose another.")


def check_base(probes: Probes, section: Section) -> None:
    """Load the embedded base onto the device, and generate an image in one step."""
    pipe = load_pipeline(str(DATA / "assets" / "emoji-sd")).to(torch.device(probes.device()))
    section.facts["emoji-sd"] = "loads"
    image = generate_image(pipe, "a photo of a tiger", 0, num_inference_steps=1)
    if np.ptp(np.asarray(image)) == 0:
        section.warn("The embedded base generates an image of one color.", REPORT_ADVICE)
    else:
        section.facts["emoji-sd"] = "loads and generates"
