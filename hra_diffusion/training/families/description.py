"""The first line of a run: the family, prediction type, size and precision of the model, and the device."""

import torch

from hra_diffusion.pipelines.kinds import default_size
from hra_diffusion.training.families.family import Family
from hra_diffusion.training.objective.noising import NoiseProcess

_PREDICTIONS = {"epsilon": "ε-prediction", "sample": "x₀-prediction", "v_prediction": "v-prediction", "flow": "flow"}


def describe_model(family: Family, process: NoiseProcess, device: torch.device, quantization: str | None) -> str:
    """Describe a model in one line: ``model: Stable Diffusion XL, v-prediction, 1024 px, bfloat16, on cuda:0, …``."""
    size = default_size(family.pipe)
    parts = [
        family.title,
        _PREDICTIONS[process.prediction],
        *(["zero terminal SNR"] if family.pipe.scheduler.config.get("rescale_betas_zero_snr") else []),
        f"made for {size} px" if size else "of any size",
        str(family.model.dtype).removeprefix("torch."),
        *([f"quantized to {quantization}"] if quantization else []),
        f"on {device_name(device)}",
    ]
    return f"model: {', '.join(parts)}"


def device_name(device: torch.device) -> str:
    """Return a device with its name: ``cuda:0, NVIDIA H100``, ``mps`` or ``cpu``."""
    if device.type != "cuda":
        return str(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{index}, {torch.cuda.get_device_name(index)}"
