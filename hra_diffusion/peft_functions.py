"""PEFT's functions, with HRAModel in the place of PeftModel.

    from hra_diffusion import HRAConfig
    from hra_diffusion.peft_functions import get_peft_model

Names of tensors are those in PEFT's files: `base_model.model.<module>.hra_u`.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.model import ejected
from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.peft import PREFIX
from hra_diffusion.model import HRAModel, LoadResult

_ADAPTED: Final = "_hra_model"


def get_peft_model(
    model: nn.Module,
    peft_config: HRAConfig,
    adapter_name: str = "default",
    *,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
    autocast_adapter_dtype: bool = True,
) -> HRAModel:
    """Adapt a model; the arguments are those of PEFT's function.

    Raises:
        ConfigError: a setting is wrong, or `revision` contradicts the settings.
        TargetError: the settings match no module, or one that cannot be adapted.
    """
    if revision is not None and peft_config.revision not in (None, revision):
        raise ConfigError(f"revision is {revision!r}, but that of the settings is {peft_config.revision!r}.")
    if revision is not None and peft_config.revision is None:
        peft_config.revision = revision
    return HRAModel(model, peft_config, adapter_name, low_cpu_mem_usage, autocast_adapter_dtype=autocast_adapter_dtype)


def inject_adapter_in_model(
    peft_config: HRAConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Adapt a model in place and return the model itself, which the functions of this module accept.

    A present adapter of the same name is replaced.
    """
    present = _find_adapted(model)
    if present is None:
        vars(model)[_ADAPTED] = HRAModel(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)
        return model
    if adapter_name in present.peft_config:
        present.delete_adapter(adapter_name)
    present.add_adapter(adapter_name, peft_config, low_cpu_mem_usage, state_dict)
    return model


def get_peft_model_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return an adapter's tensors on the CPU by their names in PEFT's files.

    Raises:
        ConfigError: the model has no adapters, or none of this name.
    """
    tensors = _adapted(model).adapter_state_dict(adapter_name)[1]
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    *,
    low_cpu_mem_usage: bool = False,
) -> LoadResult:
    """Overwrite the tensors of an adapter, and the biases of the base model that are not trained.

    Args:
        model: an adapted model.
        peft_model_state_dict: tensors by their names in PEFT's files.
        adapter_name: the adapter's name.
        low_cpu_mem_usage: accepted as in PEFT; columns on the meta device move to their layers' devices in any case.

    Returns:
        The names of unexpected tensors, which are ignored; none is missing.

    Raises:
        AdapterFileError: tensors of the adapter are missing or have another shape; nothing is changed.
        ConfigError: the model has no adapters, or none of this name.
    """
    adapted = _adapted(model)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in peft_model_state_dict.items()}
    config, known = adapted.adapter_tensor_names(adapter_name)
    mine = {name: tensor for name, tensor in tensors.items() if name in known or name.endswith(COLUMNS)}
    adapted.restore_adapter(adapter_name, config, mine)
    base = dict(adapted.model.named_parameters())
    unexpected: list[str] = []
    with torch.no_grad():
        for name in tensors.keys() - mine.keys():
            if name.endswith(".bias") and name in base and base[name].shape == tensors[name].shape:
                base[name].copy_(tensors[name])
            else:
                unexpected.append(f"{PREFIX}{name}")
    return LoadResult([], sorted(unexpected))


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the base model by their names without adapters."""
    with ejected(_adapted(model)) as base:
        return dict(base.state_dict())


def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Load tensors into the base model by their names without adapters; the result is that of load_state_dict."""
    with ejected(_adapted(model)) as base:
        return base.load_state_dict(state_dict, strict=strict)


def _find_adapted(model: nn.Module) -> HRAModel | None:
    """Return the HRAModel of a model: itself, inside a compiled or sharded one, or of an injected adapter."""
    adapted = (vars(module).get(_ADAPTED, module) for module in model.modules())
    return next((module for module in adapted if isinstance(module, HRAModel)), None)


def _adapted(model: nn.Module) -> HRAModel:
    adapted = _find_adapted(model)
    if adapted is None:
        raise ConfigError("The model has no HRA adapters.")
    return adapted
