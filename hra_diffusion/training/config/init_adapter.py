"""Settings of a run that starts from an existing adapter: rank and target modules are the adapter's."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.folders import component_folders, encoder_beside, tokens_beside
from hra_diffusion.formats.peft import read_adapter
from hra_diffusion.training.config.file import flat_values, with_values
from hra_diffusion.training.config.root import DreamBoothConfig, TrainingConfig

Config = TypeVar("Config", bound=TrainingConfig)

logger = logging.getLogger(__name__)


def initial_parts(config: TrainingConfig) -> dict[str, Path]:
    """Return the folders of the adapter to start from, by component; none without ``--init_adapter``.

    Raises:
        AdapterFileError: there is no adapter.
        ConfigError: it has learned tokens, or is a control where none is trained.
    """
    source = config.adapter.init_adapter
    if source is None:
        return {}
    parts = component_folders(source)
    if tokens_beside(parts):
        raise ConfigError(f"--init_adapter {source} has learned tokens, with which no run can start: name another.")
    if encoder_beside(parts) and isinstance(config, DreamBoothConfig):
        raise ConfigError(f"--init_adapter {source} is a control: start from it with train-control.")
    return parts


def with_initial_settings(config: Config, given: Collection[str]) -> Config:
    """Return settings with rank and target modules of the adapter to start from, if there is one.

    Args:
        config: the settings.
        given: names of the settings that the user gave.

    Raises:
        ConfigError: a given setting differs from the adapter's.
        AdapterFileError: there is no adapter, or it is damaged.
    """
    values: dict[str, Any] = {}
    for name, folder in initial_parts(config).items():
        adapter, _ = read_adapter(folder)
        is_text_encoder = name.startswith("text_encoder")
        values["rank"], values["use_magnitude"] = adapter.r, adapter.use_magnitude
        values["rank_pattern"] = {**(values.get("rank_pattern") or {}), **(adapter.rank_pattern or {})} or None
        if is_text_encoder:
            values["train_text_encoder"] = True
        if adapter.target_modules and not isinstance(adapter.target_modules, str):
            key = "text_encoder_target_modules" if is_text_encoder else "target_modules"
            values[key] = tuple(adapter.target_modules)
    before = flat_values(config)
    for name, value in values.items():
        if _unordered(before[name]) == _unordered(value):
            continue
        if name in given:
            raise ConfigError(
                f"--{name} is {before[name]}, but the adapter {config.adapter.init_adapter} has {value}: leave it out, "
                "or start without --init_adapter."
            )
        logger.warning("--%s is %s, as in the adapter %s.", name, value, config.adapter.init_adapter)
    return with_values(config, values)


def _unordered(value: Any) -> Any:
    return set(value) if isinstance(value, tuple) else value
