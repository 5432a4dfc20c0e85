"""The list of checks, in the order of the report. A check that raises is a finding; the others still run."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

from hra_diffusion.doctor.installation import check_packages, check_system, check_torch
from hra_diffusion.doctor.probes import Probes
from hra_diffusion.doctor.report import REPORT_ADVICE, Section

Check = Callable[[Probes, Section], None]
_INSTALLATION_ADVICE = "Reinstall the package or correct the file that the last lines of the details name."


def examine_installation(probes: Probes, rank: int = 8) -> Iterator[Section]:
    """Run the checks one by one and yield their results. Nothing is written, and no network is used.

    Args:
        probes: the functions that read the machine's facts.
        rank: number of columns for the check of the fused kernels.
    """
    yield run_check("system", check_system, probes)
    yield run_check("packages", check_packages, probes)
    torch_section = run_check("torch", check_torch, probes)
    yield torch_section
    if "build" not in torch_section.facts:  # torch cannot be imported, and the other checks compute with it
        return
    for title, check in _computations(rank).items():
        yield run_check(title, check, probes)


def _computations(rank: int) -> dict[str, Check]:
    """Return the checks that compute; each imports its libraries itself, since any of them may be broken."""

    def precisions(probes: Probes, section: Section) -> None:
        from hra_diffusion.doctor.arithmetic import check_precisions

        check_precisions(probes, section)

    def attention(probes: Probes, section: Section) -> None:
        from hra_diffusion.doctor.arithmetic import check_attention

        check_attention(probes, section)

    def kernels(probes: Probes, section: Section) -> None:
        from hra_diffusion.doctor.kernels import check_kernels

        check_kernels(probes, section, rank)

    def speed(probes: Probes, section: Section) -> None:
        from hra_diffusion.doctor.speed import check_speed

        check_speed(probes, section)

    def storage(probes: Probes, section: Section) -> None:
        from hra_diffusion.doctor.storage import check_storage

        check_storage(probes, section)

    def base(probes: Probes, section: Section) -> None:
        from hra_diffusion.doctor.base import check_base

        check_base(probes, section)

    return {check.__name__: check for check in (precisions, attention, kernels, speed, storage, base)}


def run_check(title: str, check: Check, probes: Probes) -> Section:
    """Run a check and return its section; the output of libraries is reported only with an error."""
    section, output = Section(title), io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
            warnings.simplefilter("default")
            check(probes, section)
    except Exception as error:
        advice = _INSTALLATION_ADVICE if isinstance(error, ImportError | OSError) else REPORT_ADVICE
        section.warn_of_error(f"The check of {title} ends with an error", error, advice, output.getvalue())
    return section
