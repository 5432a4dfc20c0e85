"""Facts of this machine, read by replaceable functions: other machines can be simulated."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_FEATURES = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "avx512_f": "AVX512",
    "avx2": "AVX2",
    "bf16": "BF16",
    "sve": "SVE",
    "neon": "NEON",
}


@dataclass(frozen=True)
class Build:
    """What torch is built for: versions of CUDA, ROCm and XPU, or None."""

    version: str
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    mps: bool = False

    def __str__(self) -> str:
        backends = {"CUDA": self.cuda, "ROCm": self.hip, "XPU": self.xpu}
        kinds = [f"{name} {version}" for name, version in backends.items() if version] + ["MPS"] * self.mps
        return f"{self.version}, built for {' and '.join(kinds) or 'the CPU alone'}"


@dataclass(frozen=True)
class Cpu:
    """The processor: its name and the instructions that matter for speed."""

    name: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accelerator:
    """A device that torch can use; memory in bytes."""

    backend: str
    name: str
    free: int
    total: int


@dataclass(frozen=True)
class InstalledGpu:
    """A GPU of the system, whether or not torch can use it."""

    vendor: str
    name: str
    cuda: str | None = None
    """The newest CUDA version of its driver."""


def torch_build() -> Build:
    """Return what the installed torch is built for."""
    import torch

    version = torch.version
    xpu = getattr(version, "xpu", None)
    return Build(torch.__version__, version.cuda, version.hip, xpu, torch.backends.mps.is_built())


def read_cpu() -> Cpu:
    """Return the processor, by torch's own detection and /proc/cpuinfo."""
    import torch

    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    name = str(capabilities.get("cpu_name") or platform.processor() or platform.machine())
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (line := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text("utf-8"), re.MULTILINE)):
        name = line[1]
    return Cpu(name.strip(), tuple(title for key, title in _FEATURES.items() if capabilities.get(key)))


def default_device() -> str:
    """Return the device that torch computes on: an available accelerator, or the CPU."""
    import torch

    return str(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def list_accelerators() -> list[Accelerator]:
    """Return the devices that torch can use besides the CPU."""
    import torch

    backend = torch.accelerator.current_accelerator(check_available=True)
    if backend is None:
        return []
    if backend.type == "mps":
        total = torch.mps.recommended_max_memory()
        return [Accelerator("mps", "Apple GPU", total - torch.mps.driver_allocated_memory(), total)]
    module = torch.get_device_module(backend)
    numbers = range(torch.accelerator.device_count())
    return [Accelerator(backend.type, module.get_device_name(i), *module.mem_get_info(i)) for i in numbers]


def list_installed_gpus(devices: Path = Path("/dev")) -> list[InstalledGpu]:
    """Return the system's NVIDIA and AMD GPUs, by nvidia-smi and the folder of device files."""
    if tool := shutil.which("nvidia-smi"):
        with_options = [tool, "-q"]
        output = subprocess.run(with_options, capture_output=True, text=True, timeout=20, check=False).stdout
        names = re.findall(r"^\s*Product Name\s*:\s*(.+?)\s*$", output, re.MULTILINE)
        cuda = re.search(r"^\s*CUDA Version\s*:\s*(\d[\d.]*)", output, re.MULTILINE)
        if names:
            return [InstalledGpu("NVIDIA", name, cuda and cuda[1]) for name in names]
    if any(devices.glob("nvidia[0-9]*")):
        return [InstalledGpu("NVIDIA", "NVIDIA GPU")]
    return [InstalledGpu("AMD", "AMD GPU")] if (devices / "kfd").exists() else []


def storage_folders() -> dict[str, Path]:
    """Return the folders that commands write to, by their purpose."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return {
        "downloaded models": Path(HF_HUB_CACHE),
        "temporary files": Path(tempfile.gettempdir()),
        "working folder": Path.cwd(),
    }


@dataclass(frozen=True, kw_only=True)
class Probes:
    """The functions that read a machine's facts; a simulated machine has others."""

    system: Callable[[], str] = platform.system
    release: Callable[[], str] = platform.release
    machine: Callable[[], str] = platform.machine
    package_version: Callable[[str], str] = metadata.version
    requirements: Callable[[str], Sequence[str] | None] = metadata.requires
    build: Callable[[], Build] = torch_build
    cpu: Callable[[], Cpu] = read_cpu
    device: Callable[[], str] = default_device
    accelerators: Callable[[], Sequence[Accelerator]] = list_accelerators
    installed_gpus: Callable[[], Sequence[InstalledGpu]] = list_installed_gpus
    environment: Callable[[], Mapping[str, str]] = lambda: os.environ
    available_memory: Callable[[], tuple[int, int]] = lambda: (
        psutil.virtual_memory().available,
        psutil.virtual_memory().total,
    )
    folders: Callable[[], Mapping[str, Path]] = storage_folders
    free_space: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
