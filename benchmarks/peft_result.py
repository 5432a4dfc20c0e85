"""The result of PEFT's benchmarks: a JSON file with run_info, train_info and meta_info, and the memory of a GPU."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import hra_diffusion


@dataclass
class Memory:
    """Memory of the GPU in bytes, in training steps only; zero without a GPU."""

    allocated: list[int] = field(default_factory=list[int])
    reserved: list[int] = field(default_factory=list[int])
    peak: int = 0

    def start(self) -> None:
        """Begin to measure the peak."""
        if _has_memory():
            torch.accelerator.empty_cache()
            torch.accelerator.reset_peak_memory_stats()

    def pause(self) -> None:
        """Keep the peak since :meth:`start`: other work follows."""
        if _has_memory():
            self.peak = max(self.peak, torch.accelerator.max_memory_reserved())

    def sample(self) -> None:
        """Record the memory after a step."""
        measured = _has_memory()
        self.allocated.append(torch.accelerator.memory_allocated() if measured else 0)
        self.reserved.append(torch.accelerator.memory_reserved() if measured else 0)

    def averages(self, steps: int) -> dict[str, float]:
        """Return the means over the last steps."""
        return {
            "mem allocated avg": fmean(self.allocated[-steps:]),
            "mem reserved avg": fmean(self.reserved[-steps:]),
        }


def make_result(
    model: Any,
    adapter: Path,
    *,
    experiment_name: str,
    created_at: str,
    total_time: float,
    train_time: float,
    train_config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, float]],
    memory: Memory,
) -> dict[str, Any]:
    """Return the result of a run in PEFT's format.

    Args:
        model: the adapted model.
        adapter: the folder of the saved adapter.
        experiment_name: the name in PEFT's table.
        created_at: the start of the run, in ISO 8601.
        total_time: seconds of the whole run.
        train_time: seconds of encoding, training and the final test.
        train_config: the settings.
        metrics: measurements during the run, the last one of the final test.
        memory: the memory of the training steps.
    """
    trainable, total = model.get_nb_trainable_parameters()
    return {
        "run_info": {
            "created_at": created_at,
            "total_time": total_time,
            "experiment_name": experiment_name,
            "peft_branch": f"hra_diffusion {hra_diffusion.__version__}",
            "peft_worktree_is_dirty": False,
            "train_config": dict(train_config),
            "peft_config": model.peft_config["default"].to_dict(),
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": int(fmean(memory.reserved)),
            "accelerator_memory_max": memory.peak,
            "accelerator_memory_reserved_99th": int(np.percentile(memory.reserved, 99)),
            "train_time": train_time,
            "file_size": sum(path.stat().st_size for path in adapter.rglob("*.safetensors")),
            "num_trainable_params": trainable,
            "num_total_params": total,
            "status": "success",
            "metrics": list(metrics),
        },
        "meta_info": {
            "model_info": _hub_info("model_info", train_config["model_id"]),
            "dataset_info": _hub_info("dataset_info", train_config["dataset_id"]),
            "package_info": {
                f"{name}-version": _version(name) for name in ("transformers", "peft", "datasets", "diffusers", "torch")
            },
            "system_info": _system_info(),
            "pytorch_info": torch.__config__.show(),
        },
    }


def _has_memory() -> bool:
    """Return whether there is a device whose memory torch counts, as PEFT's benchmark requires."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type in ("cuda", "xpu")


def _hub_info(kind: str, name: str) -> dict[str, str | None]:
    """Return the commit and the date of a repository on the hub; None where the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        info = getattr(HfApi(), kind)(name)
    except Exception:  # a folder, no network, or no access: the result is as good without
        return {"sha": None, "created_at": None}
    return {"sha": info.sha, "created_at": info.created_at.isoformat()}


def _system_info() -> dict[str, str]:
    fields = {name: getattr(platform, name)() for name in ("system", "release", "version", "machine", "processor")}
    return fields | {"accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
