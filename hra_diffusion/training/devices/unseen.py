"""A warning where the machine has a GPU that torch cannot use."""

import logging
import os
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


def warn_of_unseen_gpu(device: torch.device, devices: Path = Path("/dev")) -> None:
    """Warn that a run on the CPU leaves a GPU of the machine unused, unless a variable asks for the CPU.

    Args:
        device: the run's device.
        devices: the folder of device files.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if device.type != "cpu" or hidden or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return
    if any(devices.glob("nvidia[0-9]*")):
        if torch.version.cuda is None:
            reason = "is built without CUDA: install a build with it, see https://pytorch.org/get-started"
        else:
            reason = f"is built for CUDA {torch.version.cuda} and cannot use it: see nvidia-smi, and update the driver"
        logger.warning(
            "There is an NVIDIA GPU, but this run is on the CPU. torch %s %s. Advice: hra-diffusion doctor",
            torch.__version__,
            reason,
        )
    elif (devices / "kfd").exists() and getattr(torch.version, "hip", None) is None:
        logger.warning(
            "There may be an AMD GPU, but this run is on the CPU. torch %s is built without ROCm: install a build with "
            "it, see https://pytorch.org/get-started. Advice: hra-diffusion doctor",
            torch.__version__,
        )
