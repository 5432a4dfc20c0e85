"""The system, the packages, and the devices that torch can use. No module of torch is imported here."""

import platform
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError

from packaging.requirements import Requirement

from hra_diffusion.doctor.probes import Build, InstalledGpu, Probes
from hra_diffusion.doctor.report import Section
from hra_diffusion.version import __version__

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "triton", "torchao", "bitsandbytes", "gradio")
_OTHER_NAMES = {"triton": ("triton-windows", "pytorch-triton-rocm", "pytorch-triton-xpu", "triton-xpu")}
_TEST_EXTRAS = ("test", "dev")
_VARIABLES = ("ACCELERATE_", "CUDA_", "HF_HUB_OFFLINE", "HIP_", "HSA_", "MKL_", "OMP_", "PYTORCH_", "ROCR_", "TRITON_")
_GET_STARTED = "then install the build that PyTorch's page 'Get started' shows"


def check_system(probes: Probes, section: Section) -> None:
    """Report the operating system, Python, the version of this project, and variables that change how torch runs."""
    system, machine = probes.system(), probes.machine()
    section.facts["system"] = f"{system} {probes.release()}, {machine}"
    section.facts["Python"] = f"{platform.python_version()} ({platform.python_implementation()})"
    section.facts["hra_diffusion"] = __version__
    variables = [f"{name}={value}" for name, value in probes.environment().items() if name.startswith(_VARIABLES)]
    section.facts["variables"] = ", ".join(sorted(variables)) or "none"
    if system == "Darwin" and machine == "x86_64":
        section.warn(
            "Python is built for Intel processors, and torch has no current version for Macs with them.",
            "On a Mac with an Apple processor, install Python for arm64.",
        )


def check_packages(probes: Probes, section: Section) -> None:
    """Report the versions of the packages, and versions out of this project's bounds."""
    for name in PACKAGES:
        version = _installed_version(probes, name)
        section.facts[name] = version or "not installed"
    try:
        requirements = [Requirement(text) for text in probes.requirements("hra-diffusion") or ()]
    except PackageNotFoundError:
        section.facts["hra_diffusion"] = "not installed: running from a folder"
        return
    for requirement in requirements:
        is_general = _applies(requirement, "")
        if not is_general and any(_applies(requirement, extra) for extra in _TEST_EXTRAS):
            continue
        version = _installed_version(probes, requirement.name)
        wanted = f'pip install "{requirement.name}{requirement.specifier}"'
        if version is None and is_general:
            section.warn(f"{requirement.name} is not installed, and every command needs it.", f"Run: {wanted}")
        elif version is not None and not requirement.specifier.contains(version, prereleases=True):
            problem = f"{requirement.name} {version} is installed; hra_diffusion needs {requirement.specifier}."
            section.warn(problem, f"Run: {wanted}")


def _installed_version(probes: Probes, name: str) -> str | None:
    for distribution in (name, *_OTHER_NAMES.get(name, ())):
        try:
            return probes.package_version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def check_torch(probes: Probes, section: Section) -> None:
    """Report the build of torch, the processor, devices and memory, and GPUs that torch cannot use."""
    build = probes.build()
    section.facts["build"] = str(build)
    cpu = probes.cpu()
    section.facts["CPU"] = f"{cpu.name} ({', '.join(cpu.features) or 'no AVX2'})"
    free, total = probes.available_memory()
    section.facts["main memory"] = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < 3e9:
        section.warn(f"Only {free / 1e9:.1f} GB of main memory are free.", "End other programs.")
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        accelerators = probes.accelerators()
    for number, device in enumerate(accelerators):
        memory = f"{device.free / 1e9:.1f} of {device.total / 1e9:.1f} GB free"
        section.facts[f"{device.backend}:{number}"] = f"{device.name}, {memory}"
        if device.free < device.total / 4:
            problem = f"Other programs use most of the memory of {device.name}: {memory}."
            section.warn(problem, "End them, or choose another GPU with CUDA_VISIBLE_DEVICES.")
    if not accelerators:
        section.facts["device"] = "the CPU: torch sees no GPU"
        _warn_of_unused_gpu(probes, section, build, "; ".join(str(warning.message) for warning in messages))


def _warn_of_unused_gpu(probes: Probes, section: Section, build: Build, reason: str) -> None:
    """Add a finding about a GPU that torch cannot use, with torch's own reason."""
    visible = probes.environment().get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        section.facts["device"] = f"the CPU: CUDA_VISIBLE_DEVICES is {visible!r}, which hides GPUs"
        return
    if probes.system() == "Darwin":
        if build.mps:
            section.warn("torch cannot use the GPU of this Mac (MPS).", "Update macOS to version 14 or newer.")
        return
    gpus = probes.installed_gpus()
    vendor = gpus[0].vendor if gpus else None
    section.facts.update({f"GPU {number}": gpu.name for number, gpu in enumerate(gpus)})
    if vendor == "NVIDIA" and build.cuda is None:
        problem = f"There is an NVIDIA GPU ({gpus[0].name}), but torch {build} cannot use it."
        section.warn(problem, _cuda_build_advice(gpus))
    elif vendor == "AMD" and build.hip is None:
        section.warn(
            f"There may be an AMD GPU, but torch {build} cannot use it.",
            "If so, reinstall torch from PyTorch's pip index for ROCm (its name begins with rocm): "
            f"pip uninstall torch, {_GET_STARTED} for ROCm.",
        )
    elif vendor == "NVIDIA":
        section.warn(f"torch {build} cannot use {gpus[0].name}. {reason}".strip(), _driver_advice(gpus[0], build))
    elif build.cuda or build.hip or build.xpu:
        section.warn(
            f"torch {build} sees no GPU. {reason}".strip(),
            "Install or update the GPU's driver. In a container, pass the GPU on (docker run --gpus all). For ROCm, "
            "your user must be in the groups render and video.",
        )


def _cuda_build_advice(gpus: Sequence[InstalledGpu]) -> str:
    major = int(gpus[0].cuda.partition(".")[0]) if gpus[0].cuda else None
    if major is not None and major < 12:
        return f"Update the NVIDIA driver, whose CUDA is {gpus[0].cuda}; pip uninstall torch, {_GET_STARTED} for CUDA."
    index = f"CUDA {major} (its name begins with cu{major})" if major else "your driver's CUDA (nvidia-smi shows it)"
    return f"Reinstall torch from PyTorch's pip index for {index}: pip uninstall torch, {_GET_STARTED} for it."


def _driver_advice(gpu: InstalledGpu, build: Build) -> str:
    if gpu.cuda and build.cuda and int(gpu.cuda.partition(".")[0]) < int(build.cuda.partition(".")[0]):
        return (
            f"The driver's CUDA is {gpu.cuda}, torch's is {build.cuda}: update the driver, or install torch from "
            f"PyTorch's pip index for CUDA {gpu.cuda.partition('.')[0]}."
        )
    return "Restart the computer after an update of the driver. In a container, pass the GPU on (docker --gpus all)."
