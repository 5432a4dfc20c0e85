"""Target modules of an adapter, by PEFT's rules, and their defaults for known architectures."""

import difflib
from collections.abc import Sequence, Set
from itertools import accumulate
from typing import Any, Final

from torch import nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.patterns import matches
from hra_diffusion.errors import TargetError
from hra_diffusion.text import shorten

UNET_ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
UNET_FULL: Final = ("proj_in", "proj_out", *UNET_ATTENTION, "ff.net.0.proj", "ff.net.2")
CLIP_TEXT_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
CLIP_TEXT_FULL: Final = (*CLIP_TEXT_ATTENTION, "fc1", "fc2")

# Default targets by transformers' model_type or the class in diffusers.
_ARCHITECTURES: Final[dict[tuple[str, ...] | str, tuple[str, ...]]] = {
    UNET_FULL: ("UNet2DConditionModel",),
    CLIP_TEXT_FULL: ("clip_text_model",),
    (
        r"(single_)?transformer_blocks\.\d+\.attn\.(to_(q|k|v|out\.0|add_out|qkv_mlp_proj)|add_(q|k|v)_proj)|"
        r"single_transformer_blocks\.\d+\.attn\.to_out"
    ): ("Flux2Transformer2DModel",),
    r"(single_)?transformer_blocks\.\d+\.(attn\.(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)|proj_mlp|proj_out)": (
        "ChromaTransformer2DModel",
        "FluxTransformer2DModel",
    ),
    (
        r"transformer_blocks\.\d+\.(attn\.(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)|"
        r"(img|txt)_mlp\.net\.(0\.proj|2))"
    ): ("QwenImageTransformer2DModel",),
    r"layers\.\d+\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])": ("ZImageTransformer2DModel",),
    ("q_proj", "v_proj"): (
        *("bart", "gemma", "gemma2", "gemma3_text", "gpt_neo", "gptj", "llama", "llama4", "mistral", "mixtral"),
        *("opt", "qwen2", "qwen3", "stablelm"),
    ),
    r".*language_model\..*\.(q_proj|v_proj)": ("gemma4",),
    ("q_proj", "k_proj", "v_proj", "o_proj"): ("nemotron_h",),
    ("q_proj", "v_proj", "fc1", "fc2"): ("phi",),
    ("q", "v"): ("mt5", "t5"),
    ("q", "v", "q_proj", "v_proj"): ("blip-2",),
    ("query", "value"): ("bert", "electra", "layoutlm", "roberta", "xlm-roberta"),
    ("query_proj", "value_proj"): ("deberta-v2",),
    ("query_key_value",): ("RefinedWeb", "RefinedWebModel", "bloom", "chatglm", "falcon", "gpt_neox"),
    ("c_attn",): ("gpt2", "gpt_bigcode"),
    ("c_proj", "c_attn"): ("btlm",),
    ("in_proj",): ("deberta",),
    ("qkv_proj",): ("codegen",),
    ("Wqkv",): ("mpt",),
    ("key", "value", "receptance", "output"): ("rwkv",),
    ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"): ("rwkv7",),
}
ARCHITECTURE_TARGETS: Final = {name: targets for targets, names in _ARCHITECTURES.items() for name in names}

_CLASSIFIER_HEADS = ("score", "classifier")


def find_targets(model: nn.Module, config: HRAConfig) -> list[str]:
    """Return the names of the modules to adapt, in the model's order.

    Raises:
        TargetError: no module matches, or the configuration names no targets and the architecture is unknown.
    """
    names = [name for name, _ in model.named_modules() if name]
    targets = _resolve(model, config)
    wanted = targets if isinstance(targets, str) else frozenset(targets)
    whole, excluded = frozenset(config.modules_to_save or ()), config.exclude_modules or ()
    excluded = excluded if isinstance(excluded, str) else frozenset(excluded)
    chosen = [name for name in names if _is_target(name, wanted, config) and not _is_excluded(name, whole, excluded)]
    if not chosen:
        raise TargetError(_nothing_matched(targets, names, config))
    return chosen


def check_target_names(config: HRAConfig, *models: nn.Module) -> None:
    """Check that every listed target matches a module of at least one model.

    Adapter files may fail this check: PEFT's may name modules of another version of a model.

    Raises:
        TargetError: a name matches no module.
    """
    names = [name for model in models for name, _ in model.named_modules() if name]
    known = {suffix for name in names for suffix in _suffixes(name)}
    if not isinstance(config.target_modules, str) and "all-linear" in (config.target_modules or ()):
        raise TargetError("all-linear includes all targets: give it alone, or give only the other names.")
    listed = [] if isinstance(config.target_modules, str) else config.target_modules or []
    if missing := [target for target in listed if target not in known]:
        raise TargetError(_nothing_matched(missing, names, config))


def find_named(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of modules that match `names`, whole or as the last part of a dotted name.

    Some may match no module: for classifiers, PEFT lists both "classifier" and "score".

    Raises:
        TargetError: none of them matches a module.
    """
    known = [name for name, _ in model.named_modules() if name] if names else []
    wanted = set(names)
    saved = [other for other in known if wanted & _suffixes(other)]
    if names and not saved:
        near = difflib.get_close_matches(names[0], known, n=5, cutoff=0.3) or known[-5:]
        raise TargetError(
            f"The model has no module {shorten(map(repr, names))} to train whole (modules_to_save); some of its "
            f"modules: {', '.join(near)}."
        )
    return saved


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies the last dimension by a weight.

    These are nn.Linear, its quantized variants, and transformers' Conv1D.
    """
    inner: Any = getattr(module, "get_base_layer", None)
    if inner and (held := inner()) is not module:  # PEFT's convolutions have in_features, too.
        return is_linear(held)
    if isinstance(module, nn.Bilinear | nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    has_sizes = all(isinstance(getattr(module, size, None), int) for size in ("in_features", "out_features"))
    return has_sizes or type(module).__name__ == "Conv1D"


def _resolve(model: nn.Module, config: HRAConfig) -> str | Sequence[str]:
    if config.target_modules is None:
        return architecture_targets(model)
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        return _all_linear(model, config)
    return config.target_modules


def architecture_targets(model: nn.Module) -> str | Sequence[str]:
    """Return the default targets of a model's architecture.

    Raises:
        TargetError: the architecture is unknown.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for architecture in (type(model).__name__, model_type):
        if architecture in ARCHITECTURE_TARGETS:
            return ARCHITECTURE_TARGETS[architecture]
    raise TargetError(
        f"No default targets are known for {type(model).__name__} (model_type {model_type!r}): set target_modules, "
        'for example to "all-linear".'
    )


def _all_linear(model: nn.Module, config: HRAConfig) -> list[str]:
    """Return all linear layers, except the output layer of a language model and the head of a classifier."""
    output = None
    if callable(get_output := getattr(model, "get_output_embeddings", None)):
        output = get_output()
    if output is None and config.task_type == "SEQ_CLS":
        output = next((head for name in _CLASSIFIER_HEADS if (head := getattr(model, name, None)) is not None), None)
    return [name for name, module in model.named_modules() if name and is_linear(module) and module is not output]


def _is_target(name: str, targets: str | Set[str], config: HRAConfig) -> bool:
    if isinstance(targets, str):
        return matches(targets, name)
    return name in targets or (not targets.isdisjoint(_suffixes(name)) and _is_chosen_layer(name, config))


def _is_excluded(name: str, whole: Set[str], excluded: str | Set[str]) -> bool:
    """Whether a module is excluded by its name, or is within a module that trains whole."""
    if whole and any(not whole.isdisjoint(_suffixes(part)) for part in accumulate(name.split("."), "{}.{}".format)):
        return True
    return matches(excluded, name) if isinstance(excluded, str) else not excluded.isdisjoint(_suffixes(name))


def _suffixes(name: str) -> set[str]:
    """Return a dotted name without its first parts: {"a.b.c", "b.c", "c"}."""
    parts = name.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


def _is_chosen_layer(name: str, config: HRAConfig) -> bool:
    """Whether the first number behind the pattern of layers is a chosen one: 1 in "layers.1.experts.0.w"."""
    chosen = config.layers_to_transform
    if chosen is None or chosen == ():
        return True
    patterns, parts = config.layers_pattern or (), name.split(".")
    for pattern in (patterns,) if isinstance(patterns, str) else patterns or (None,):
        for index in range(1 if pattern else 2, len(parts) - 1):
            if parts[index].isdecimal() and (pattern is None or _ends_in(".".join(parts[:index]), pattern)):
                return int(parts[index]) in ((chosen,) if isinstance(chosen, int) else chosen)
    return False


def _ends_in(name: str, pattern: str) -> bool:
    """Whether the last parts of a dotted name match a pattern."""
    return any(matches(pattern, suffix) for suffix in _suffixes(name))


def _nothing_matched(targets: str | Sequence[str], names: Sequence[str], config: HRAConfig) -> str:
    wanted = [targets] if isinstance(targets, str) else list(targets)
    tails = list(dict.fromkeys(".".join(name.split(".")[-parts:]) for name in names for parts in (1, 2, 3)))
    nearest = [near for target in wanted[:8] for near in difflib.get_close_matches(target, tails, n=3, cutoff=0.5)]
    examples = list(dict.fromkeys([*nearest, *names[-3:]]))[:8]
    limits = [
        f"{limit} {repr(value)[:200]}"
        for limit in ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
        if (value := getattr(config, limit))
    ]
    within = f" within {' and '.join(limits)}" if limits else ""
    return (
        f"target_modules {shorten(map(repr, sorted(wanted)))} match no module of the model{within}; "
        f"some of its modules are: {', '.join(examples)}."
    )
