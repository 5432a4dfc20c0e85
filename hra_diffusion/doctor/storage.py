"""Free disk space of the folders that commands write to."""

import os

from hra_diffusion.doctor.probes import Probes
from hra_diffusion.doctor.report import Section
from hra_diffusion.formats.files import existing_part

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
