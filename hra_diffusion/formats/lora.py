"""The exact LoRA of an HRA adapter, in the layouts that other tools read.

    W H − W = B A,   A (r, d) orthonormal rows,   B (out, r)

                kohya                                    diffusers                         peft
    file        one                                      one                               a folder a component
    module      lora_unet_mid_block_attentions_0_…       unet.mid_block.attentions.0.…     base_model.model.mid_block.…
    in SDXL     lora_unet_middle_block_1_…               the same                          the same
    A           .lora_down.weight                        .lora_A.weight                    .lora_A.weight
    B           .lora_up.weight                          .lora_B.weight                    .lora_B.weight
    scale       .alpha / rank                            1                                 lora_alpha / r

Every layer gets the same rank, filled up with zeros, and alpha = rank, so that the scale is 1 for every reader; some
take one layer's for another's where they differ.

Source: the layouts are those of kohya-ss/sd-scripts, diffusers and PEFT; A1111 and ComfyUI read kohya's. The
metadata are kohya's ``ss_`` keys and Stability's ModelSpec 1.0.0.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.state import some
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.files import read_tensors
from hra_diffusion.formats.original_names import original_names
from hra_diffusion.householder.compact_wy import orthonormal_delta

Layout = Literal["kohya", "diffusers", "peft"]
LAYOUTS: Final[tuple[str, ...]] = get_args(Layout)

KOHYA_PREFIXES: Final = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
# The first text encoder of models that have two.
KOHYA_FIRST_OF_TWO: Final = "lora_te1"
_TEXT_MODEL: Final = "text_model."

Place = tuple[str, str]
"""The component a module is in, and its name there."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What an adapter adds to the weight of one layer, as a LoRA.

    Attributes:
        component: name of the pipeline's component.
        module: name of the module in it.
        A: the narrowing weight (r, d), or (r, in, kh, kw) for a convolution.
        B: the widening weight (out, r), or (out, r, 1, 1).
    """

    component: str
    module: str
    A: Tensor
    B: Tensor


@torch.no_grad()
def update_of(layer: HRALayer, component: str, module: str) -> Update | None:
    """Compute what acts in a layer as a LoRA, in float64; None when nothing does.

    Raises:
        MergeError: the layer's weight is quantised or offloaded.
    """
    columns = layer.columns()
    if columns is None:
        return None
    weight = layer.own_weight()
    wide = layer.unfold_weight(weight).to("cpu", torch.float64)
    B, A = orthonormal_delta(columns.to("cpu", torch.float64), wide)
    if weight.dim() == 4:
        A, B = layer.fold_weight(A), B[..., None, None]
    return Update(component=component, module=module, A=A, B=B)


def with_rank(update: Update, rank: int) -> Update:
    """Fill an update up with zeros to a rank."""
    missing, spatial = rank - len(update.A), update.A.dim() - 2
    A = pad(update.A, (0, 0) * (1 + spatial) + (0, missing))
    B = pad(update.B, (0, 0) * spatial + (0, missing))
    return Update(component=update.component, module=update.module, A=A, B=B)


def kohya_names(modules: Iterable[Place], *, two_text_encoders: bool) -> dict[Place, str]:
    """Return kohya's names of a pipeline's modules, but for components that kohya has none for.

    Of SDXL, kohya trains the UNet of the original code, whose names all tools know; of others, diffusers'.

    Args:
        modules: component and name of all modules.
        two_text_encoders: whether this is SDXL.
    """
    modules = list(modules)
    original = original_names(module for component, module in modules if component == "unet")
    names: dict[Place, str] = {}
    for component, module in modules:
        if component in KOHYA_PREFIXES:
            first_of_two = two_text_encoders and component == "text_encoder"
            prefix = KOHYA_FIRST_OF_TWO if first_of_two else KOHYA_PREFIXES[component]
            spelled = _spelled_out(component, module)
            if two_text_encoders and component == "unet":
                spelled = original.get(module, module)
            names[component, module] = f"{prefix}_{spelled}".replace(".", "_")
    return names


def diffusers_name(component: str, module: str) -> str:
    """Return diffusers' name of a module."""
    return f"{component}.{_spelled_out(component, module)}"


def kohya_tensors(updates: list[Update], dtype: torch.dtype, names: Mapping[Place, str]) -> dict[str, Tensor]:
    """Name an adapter's updates, of one rank, as kohya does.

    Raises:
        ConfigError: kohya has no names for modules of a component.
    """
    tensors: dict[str, Tensor] = {}
    for update in updates:
        if (update.component, update.module) not in names:
            raise ConfigError(f"kohya's layout has no place for a {update.component}: use --layout diffusers.")
        name = names[update.component, update.module]
        tensors[f"{name}.lora_down.weight"] = update.A.to(dtype).contiguous()
        tensors[f"{name}.lora_up.weight"] = update.B.to(dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(update.A)), dtype=dtype)
    return tensors


def diffusers_tensors(updates: list[Update], dtype: torch.dtype) -> dict[str, Tensor]:
    """Name an adapter's updates, of one rank, as diffusers does."""
    tensors: dict[str, Tensor] = {}
    for update in updates:
        name = diffusers_name(update.component, update.module)
        tensors[f"{name}.lora_A.weight"] = update.A.to(dtype).contiguous()
        tensors[f"{name}.lora_B.weight"] = update.B.to(dtype).contiguous()
    return tensors


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A LoRA's factors of one layer: W + scale · B A.

    Attributes:
        A: (r, d), unfolded.
        B: (out, r), unfolded, with the scale in it.
    """

    A: Tensor
    B: Tensor


# Names of A's and B's tensors, after the module's: kohya's, diffusers', PEFT's, and diffusers' before it used PEFT.
_SPELLINGS: Final = (
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
)


def read_lora(path: Path, modules: Iterable[Place]) -> dict[Place, Factors]:
    """Read a LoRA in kohya's or diffusers' layout.

    Args:
        path: a safetensors file.
        modules: component and name of every module that it may be for.

    Returns:
        Factors by component and module.

    Raises:
        AdapterFileError: the file is damaged, or holds something else than LoRAs of these modules.
    """
    tensors = read_tensors(path)
    scales, modules = _scales(path), list(modules)
    kohya = [kohya_names(modules, two_text_encoders=two) for two in (False, True)]
    found: dict[Place, Factors] = {}
    for component, module in modules:
        names = [each[component, module] for each in kohya if (component, module) in each]
        names += [diffusers_name(component, module), f"{component}.{module}"]
        for name, (down, up) in itertools.product(dict.fromkeys(names), _SPELLINGS):
            A, B = tensors.get(f"{name}.{down}"), tensors.get(f"{name}.{up}")
            if A is None or B is None:
                continue
            alpha = tensors.pop(f"{name}.alpha", None)
            scale = scales.get(component, 1.0) if alpha is None else alpha.item() / len(A)
            found[component, module] = Factors(A=A.double().flatten(1), B=scale * B.double().flatten(1))
            del tensors[f"{name}.{down}"], tensors[f"{name}.{up}"]
    if tensors or not found:
        raise AdapterFileError(
            f"{path} is no LoRA in kohya's or diffusers' layout for this model; there is no module for: "
            f"{some(tensors) or 'it is empty'}."
        )
    return found


def _scales(path: Path) -> dict[str, float]:
    """Read what diffusers writes into a file's header: alpha / r of each component."""
    with safe_open(path, "pt") as file:
        described = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return {
        key.removesuffix(".lora_alpha"): alpha / described[key.removesuffix("lora_alpha") + "r"]
        for key, alpha in described.items()
        if key.endswith(".lora_alpha")
    }


def peft_files(
    updates: list[Update], dtype: torch.dtype, base_model: str | None, metadata: Mapping[str, str]
) -> dict[str, bytes]:
    """Return PEFT's two files for each component, by path."""
    files: dict[str, bytes] = {}
    for component in dict.fromkeys(update.component for update in updates):
        own = [update for update in updates if update.component == component]
        tensors = {
            f"base_model.model.{update.module}.{factor}.weight": tensor.to(dtype).contiguous()
            for update in own
            for factor, tensor in (("lora_A", update.A), ("lora_B", update.B))
        }
        config = {
            "peft_type": "LORA",
            "r": len(own[0].A),
            "lora_alpha": len(own[0].A),
            "target_modules": [update.module for update in own],
            "base_model_name_or_path": base_model,
            "inference_mode": True,
        }
        files[f"{component}/adapter_model.safetensors"] = save(tensors, metadata={**metadata, "format": "pt"})
        files[f"{component}/adapter_config.json"] = json.dumps(config, indent=2).encode()
    return files


def file_bytes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with a hash of its tensors in its metadata, where kohya and ModelSpec look for it."""
    content = save(tensors)
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return save(tensors, metadata={**metadata, **hashes, "format": "pt"})


def describe(
    *, title: str, rank: int, family: Literal["sd1", "sd2", "sdxl"], base_model: str | None, **more: Any
) -> dict[str, str]:
    """Describe a LoRA as kohya and ModelSpec do.

    Args:
        title: its name.
        rank: its rank, which is alpha, too.
        family: what kind of model it is for.
        base_model: the model it was made for.
        more: strength (float), trigger (words), licence, thumbnail (a data URL), prediction_type, training (a run's
            settings); what is None is left out.
    """
    architecture, version = _FAMILIES[family]
    training: Mapping[str, Any] = more.get("training") or {}
    settings = {f"ss_{name}": training.get(key) for name, key in _TRAINING.items()}
    known = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.description": f"The exact LoRA of an HRA adapter at strength {more.get('strength', 1.0):g}.",
        "modelspec.trigger_phrase": more.get("trigger"),
        "modelspec.license": more.get("licence"),
        "modelspec.thumbnail": more.get("thumbnail"),
        "modelspec.prediction_type": {"v_prediction": "v"}.get(more.get("prediction_type", ""), "epsilon"),
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd2"),
        "ss_sd_model_name": base_model,
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(rank),
        **settings,
        "ss_training_comment": json.dumps(training, default=str) if training else None,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


_FAMILIES: Final = {
    "sd1": ("stable-diffusion-v1", "sd_v1"),
    "sd2": ("stable-diffusion-v2-768-v", "sd_v2"),
    "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
# kohya's names of a run's settings, without ss_.
_TRAINING: Final = {
    "learning_rate": "learning_rate",
    "text_encoder_lr": "text_encoder_lr",
    "max_train_steps": "max_train_steps",
    "total_batch_size": "train_batch_size",
    "optimizer": "optimizer",
    "lr_scheduler": "lr_scheduler",
    "seed": "seed",
    "resolution": "resolution",
    "mixed_precision": "mixed_precision",
}


def _spelled_out(component: str, module: str) -> str:
    """Add the part of text encoders' names that transformers 5 dropped and other tools know."""
    dropped = component.startswith("text_encoder") and not module.startswith(_TEXT_MODEL)
    return f"{_TEXT_MODEL}{module}" if dropped else module
