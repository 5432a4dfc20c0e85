"""Settings of PEFT's LoRAs that scale or change their updates, as in PEFT's `LoraConfig`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hra_diffusion.adapter.ranks import check_patterns, pattern_value
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.text import shorten

# Settings without effect on the update of a trained LoRA, and those whose effect is in tensors of their own.
_NEUTRAL: Final = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_type", "peft_version"),
    *("qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type"),
    *("use_rslora", "velora_config", "init_lora_weights"),
    *("bias", "lora_bias", "modules_to_save", "trainable_token_indices"),
}
_UNSET: Final = (None, False, [], {})
# Initial values that do not replace the base's weights; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do.
_INITS: Final = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True, kw_only=True)
class LoraScaling:
    """Ranks and alphas of a PEFT LoRA.

    Attributes:
        rank: r of most modules.
        alpha: lora_alpha of most modules.
        ranks: r of other modules, by the end of their names or a regular expression of it.
        alphas: lora_alpha of other modules, in the same way.
        rank_stabilized: whether the scale is alpha / √r (use_rslora) instead of alpha / r.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilized: bool

    def scale(self, module: str, rank: int) -> float:
        """Return the scale of a module's update.

        Raises:
            ValueError: its tensors have another rank than the settings.
        """
        expected = pattern_value(self.ranks, module, self.rank)
        if rank != expected:
            raise ValueError(f"its settings have rank {expected} for {module}, and its tensors have rank {rank}")
        return pattern_value(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilized else rank)


def lora_scaling(settings: Mapping[str, Any], source: Path) -> LoraScaling:
    """Read the scaling from PEFT's settings.

    Args:
        settings: the content of adapter_config.json, or of a component in diffusers' `lora_adapter_metadata`.
        source: the file that holds them, for messages.

    Raises:
        AdapterFileError: a setting means more than a LoRA.
        Exception: of any kind, if a value is missing or damaged.
    """
    _refuse_variants(settings, source)
    ranks: Mapping[str, int] = settings.get("rank_pattern") or {}
    alphas: Mapping[str, float] = settings.get("alpha_pattern") or {}
    try:
        check_patterns({**ranks, **alphas})
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return LoraScaling(
        rank=int(settings["r"]),
        alpha=_finite(settings["lora_alpha"]),
        ranks={name: int(rank) for name, rank in ranks.items()},
        alphas={name: _finite(alpha) for name, alpha in alphas.items()},
        rank_stabilized=bool(settings.get("use_rslora")),
    )


def _refuse_variants(settings: Mapping[str, Any], source: Path) -> None:
    """Refuse settings that change more than the ranks and the scale."""
    if (init := settings.get("init_lora_weights", True)) not in _INITS:
        raise AdapterFileError(
            f"{source} has init_lora_weights = {str(init)[:80]!r}, so its LoRA is for changed weights of the base. "
            "Save it with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)."
        )
    changed = [name for name, value in settings.items() if name not in _NEUTRAL and value not in _UNSET]
    if changed:
        kind = "DoRA" if "use_dora" in changed else "more than a LoRA"
        values = shorten(f"{name} = {str(settings[name])[:80]}" for name in changed)
        raise AdapterFileError(f"{source} is for {kind}, which cannot be imported: it has {values}.")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"alpha is {value}")
    return float(value)
