"""``hra-diffusion doctor``: check the installation on this machine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hra_diffusion.cli.arguments import parse_settings


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check versions, devices, precisions, kernels and speed on this machine, in less than a minute and offline.

    The exit code is 1 if something needs attention. The output has no user names, home folders or tokens: paste it into
    a bug report.
    """

    json: bool = False
    """Print one JSON object instead of text."""
    rank: int = 8
    """Rank for the check of the fused kernels."""


def main(arguments: Sequence[str]) -> int:
    """Print the results of all checks; return 1 if something needs attention, otherwise 0."""
    config = parse_settings(DoctorConfig, arguments, prog="hra-diffusion doctor")

    from hra_diffusion.doctor.examination import examine_installation
    from hra_diffusion.doctor.probes import Probes

    sections = []
    for section in examine_installation(Probes(), config.rank):
        sections.append(section)
        if not config.json:  # at once: a driver that crashes would end the process
            print(section.to_text(), end="\n\n", flush=True)
    count = sum(len(section.findings) for section in sections)
    if config.json:
        report = {"healthy": count == 0, "sections": {section.title: section.to_json() for section in sections}}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        plural = "s" if count > 1 else ""
        print(f"{count} finding{plural}: see the lines with !" if count else "All is well.")
    return 1 if count else 0
