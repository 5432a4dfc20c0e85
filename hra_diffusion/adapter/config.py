"""HRAConfig: the settings of an adapter, with the names and meanings of PEFT's adapter_config.json."""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from hra_diffusion.adapter.patterns import MAX_NAMES, check_pattern
from hra_diffusion.adapter.ranks import RankPattern, check_patterns, pattern_value
from hra_diffusion.errors import ConfigError
from hra_diffusion.text import nearest, shorten

Bias = Literal["none", "all", "hra_only"]


class PeftType(StrEnum):
    """The kind of an adapter, as in PEFT."""

    HRA = "HRA"


# Further entries of adapter_config.json.
_PEFT_EXTRAS = {"peft_type": PeftType.HRA.value, "auto_mapping": None}
_PEFT_IGNORED = {*_PEFT_EXTRAS, "peft_version", "runtime_config"}
_UNKNOWN_TO_PEFT = ("rank_pattern", "use_magnitude")
"""Settings that PEFT's HRA lacks: they are written only where they mean something."""

CONFIG_FILE: Final = "adapter_config.json"
_MAX_BYTES = 10_000_000


@dataclasses.dataclass(kw_only=True)
class HRAConfig:
    """The settings of one HRA adapter; lists are stored as tuples. They can be set until a model uses them.

    Args:
        r: number of reflections a layer (≥ 1). Training can start at the base model only with an even number.
        rank_pattern: ranks of some layers, by the end of their names or a regular expression of it, as in PEFT's LoRA.
        apply_GS: orthogonalize the columns (λ = ∞ in the paper).
        use_magnitude: train a factor for each output of a layer, too: an exact DoRA. Not known to PEFT's HRA.
        target_modules: module names (matched whole, or as the last part of a dotted name), or a regular expression for
            the whole name, or "all-linear"; None for the defaults of the model's architecture.
        exclude_modules: names or a regular expression of modules to exclude.
        init_weights: start at the base model, with pairs of equal reflections; False for random columns. For pairs
            along a loss's gradient see `initialize_from_gradient`.
        layers_to_transform: index or indices of the layers to adapt; needs target names, not a regular expression.
        layers_pattern: name(s) of the module list with these indices, such as "layers" or "h".
        bias: the biases to train and save: "none", "all", or "hra_only" (those of adapted layers).
        modules_to_save: modules to train and save whole.
        task_type: PEFT's task name, such as "CAUSAL_LM"; kept for PEFT.
        inference_mode: load the adapter frozen.
        base_model_name_or_path: the base model of the adapter.
        revision: the revision of the base model.

    Raises:
        ConfigError: a value is out of its range, or two contradict each other.
    """

    r: int = 8
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    apply_GS: bool = False  # noqa: N815 (PEFT's name)
    use_magnitude: bool = False
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    init_weights: bool = True
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    bias: Bias = "none"
    modules_to_save: Sequence[str] | None = None
    task_type: str | None = None
    inference_mode: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        self.__dict__["_is_complete"] = False
        for name in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, list | set | frozenset):
                ordered = value if isinstance(value, list) else sorted(value)
                setattr(self, name, tuple(ordered))
        _check_rank("The rank r", self.r)
        self.__dict__["rank_pattern"] = RankPattern(_checked_ranks(self.rank_pattern))
        initialization: Any = self.init_weights
        if initialization == "gradient":
            raise ConfigError(
                "init_weights is 'gradient', which needs batches of data: leave init_weights True, and call "
                "initialize_from_gradient(model, backward) before training."
            )
        for name in ("apply_GS", "use_magnitude", "init_weights", "inference_mode"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false; found {_short(getattr(self, name))}.")
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            _check_names(name, getattr(self, name))
        layers: Any = self.layers_to_transform
        indices = layers if isinstance(layers, tuple) else (layers,)
        if layers is not None and not all(type(index) is int for index in indices):
            raise ConfigError(f"layers_to_transform must be indices of layers; found {_short(layers)}.")
        if len(indices) > MAX_NAMES:
            raise ConfigError(f"layers_to_transform has {len(indices):,} indices, more than {MAX_NAMES:,}.")
        if self.bias not in get_args(Bias):
            raise ConfigError(f"bias must be one of {', '.join(get_args(Bias))}; found {_short(self.bias)}.")
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} needs target_modules to be a list of names; found a string.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern needs the indices of layers: give layers_to_transform, too.")
        self.__dict__["_is_complete"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, and check all of them; a wrong value is not kept.

        Raises:
            ConfigError: there is no such field, its value is wrong, or a model uses the settings.
        """
        if name not in _field_names(type(self)):
            raise ConfigError(f"HRAConfig has no setting {name!r}{nearest(name, _field_names(type(self)))}")
        if self.__dict__.get("_is_used"):
            raise ConfigError(f"A model uses these settings: {name} cannot change any more. Make another HRAConfig.")
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if self.__dict__.get("_is_complete"):
            try:
                self.__post_init__()
            except ConfigError:
                self.__dict__[name] = before
                self.__dict__["_is_complete"] = True
                raise

    def rank_of(self, module: str) -> int:
        """Return the rank in a module."""
        return pattern_value(self.rank_pattern, module, self.r)

    @property
    def odd_rank(self) -> int | None:
        """The first odd number of reflections that a layer may have, if any."""
        return next((r for r in (self.r, *self.rank_pattern.values()) if r % 2), None)

    @property
    def largest_rank(self) -> int:
        """The largest rank of a layer."""
        return max((self.r, *self.rank_pattern.values()))

    def mark_used(self) -> None:
        """Refuse further changes."""
        self.__dict__["_is_used"] = True

    def set_inference_mode(self, inference_mode: bool) -> None:
        """Set `inference_mode`, also of settings that a model uses: PEFT's from_pretrained does with given ones."""
        self.__dict__["inference_mode"] = inference_mode

    @property
    def peft_type(self) -> PeftType:
        """The kind of the adapter in PEFT's words."""
        return PeftType.HRA

    @property
    def is_prompt_learning(self) -> bool:
        """False: PEFT asks."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """False: PEFT asks."""
        return False

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write adapter_config.json into a folder, as a whole."""
        path = Path(save_directory) / CONFIG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.to_peft(), indent=2, sort_keys=True), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HRAConfig":
        """Read adapter_config.json from a folder on this machine.

        Raises:
            ConfigError: there is no such file, it is damaged, or of another kind of adapter.
        """
        path = Path(folder) / CONFIG_FILE
        try:
            with path.open("rb") as file:
                settings: Any = json.loads(file.read(_MAX_BYTES).decode())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as an adapter's settings: {_short(str(error))}") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"{path} holds no settings of an adapter.")
        return cls.from_peft({str(name): value for name, value in settings.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name, as PEFT's configs do."""
        return self.to_peft()

    def to_peft(self) -> dict[str, Any]:
        """Return the content of PEFT's adapter_config.json."""
        settings = dataclasses.asdict(self) | _PEFT_EXTRAS
        for name in _UNKNOWN_TO_PEFT:
            if not settings[name]:
                del settings[name]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    @classmethod
    def from_peft(cls, settings: Mapping[str, Any]) -> "HRAConfig":
        """Return the settings in the content of PEFT's adapter_config.json.

        Settings of other PEFT versions are ignored with a warning, as in PEFT.

        Raises:
            ConfigError: the adapter is of another kind, or a value is out of its range.
        """
        if settings.get("peft_type") != "HRA":
            raise ConfigError(
                f"The adapter is not an HRA adapter: its peft_type is {_short(settings.get('peft_type'))}."
            )
        known = _field_names(cls)
        if unknown := sorted(settings.keys() - known - _PEFT_IGNORED):
            warnings.warn(
                f"Unknown settings in the adapter's configuration are ignored: {shorten(unknown)}.", stacklevel=2
            )
        return cls(**{name: value for name, value in settings.items() if name in known})


@cache
def _field_names(kind: type[HRAConfig]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


def _check_rank(name: str, r: Any) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, better an even one; found {_short(r)}.")


def _checked_ranks(ranks: Any) -> dict[str, int]:
    """Check the ranks of layers by pattern, and return a copy."""
    if ranks is None:
        return {}
    if not isinstance(ranks, Mapping) or not all(isinstance(name, str) for name in ranks):
        raise ConfigError(f"rank_pattern must be a table of ranks by module name; found {_short(ranks)}.")
    try:
        check_patterns(ranks)
    except ConfigError as error:
        raise ConfigError(f"rank_pattern is wrong: {error}.") from error
    for name, r in ranks.items():
        _check_rank(f"rank_pattern's rank of {_short(name)}", r)
    return dict(ranks)


def _check_names(field: str, value: Any) -> None:
    """Check that a setting is a list of names, a regular expression, or None."""
    if value is None:
        return
    if isinstance(value, tuple) and all(isinstance(name, str) for name in value):
        if len(value) > MAX_NAMES:
            raise ConfigError(f"{field} has {len(value):,} names, more than {MAX_NAMES:,}.")
        return
    if not isinstance(value, str):
        raise ConfigError(f"{field} must be a list of names, or a regular expression; found {_short(value)}.")
    try:
        check_pattern(value)
    except ConfigError as error:
        raise ConfigError(f"{field} is {_short(value)}, which {error}.") from error


def _short(value: Any) -> str:
    """Return the beginning of a value's text, for messages."""
    return repr(value)[:80]
