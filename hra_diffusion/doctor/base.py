"""The embedded base on the device."""

import numpy as np
import torch

from hra_diffusion.doctor.probes import Probes
from hra_diffusion.doctor.report import REPORT_ADVICE, Section
from hra_diffusion.pipelines import generate_image, load_pipeline
from hra_diffusion.resources import DATA


def check_base(probes: Probes, section: Section) -> None:
    """Load the embedded base onto the device, and generate an image in one step."""
    pipe = load_pipeline(str(DATA / "assets" / "emoji-sd")).to(torch.device(probes.device()))
    section.facts["emoji-sd"] = "loads"
    image = generate_image(pipe, "a photo of a tiger", 0, num_inference_steps=1)
    if np.ptp(np.asarray(image)) == 0:
        section.warn("The embedded base generates an image of one color.", REPORT_ADVICE)
    else:
        section.facts["emoji-sd"] = "loads and generates"
