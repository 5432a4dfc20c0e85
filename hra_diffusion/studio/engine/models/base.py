"""The facts of a base model from its JSON files: the page opens before the weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hra_diffusion import pipelines
from hra_diffusion.errors import AdapterFileError, ModelError
from hra_diffusion.formats.folders import public_name
from hra_diffusion.formats.hub import local_folder
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.run_folder import BASE_OPTIONS
from hra_diffusion.formats.weight_files import explain_weights
from hra_diffusion.pipelines.kinds import KINDS, PipelineKind
from hra_diffusion.studio.engine.generation.schedulers import scheduler_names
from hra_diffusion.training.config.defaults import EMBEDDED_BASE

_INDEX = "model_index.json"
_PACKED_SIDE = 128
"""Native side of packed latents, diffusers' ``default_sample_size``."""
_NO_WEIGHTS = ("scheduler", "tokenizer", "feature_extractor")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model."""

    source: str
    """Folder, single file, or name on the hub."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``pipelines.load_pipeline``: revision, variant, vae."""
    name: str
    """Name for display and publication, without folders."""
    size: int
    """Native side of its images, the shorter one, in pixels."""
    multiple: int
    """Size multiple of its images, in pixels."""
    schedulers: tuple[str, ...]
    """Names of the available schedulers, the model's default first."""
    guidance_scale: float = 7.5
    """Default guidance scale of its images."""
    text_encoders: int = 1
    """Number of its text encoders."""
    text_encoders_train: bool = False
    """Whether its text encoders can be trained."""
    is_embedded: bool = False
    """Whether it is the project's embedded base."""

    @property
    def flags(self) -> dict[str, Any]:
        """The options by their names in the settings of a run."""
        return {flag: self.options[option] for flag, option in BASE_OPTIONS.items() if option in self.options}


def read_base(source: str, options: Mapping[str, Any] | None = None) -> Base:
    """Read the facts of a model from its JSON files.

    Args:
        source: a folder in diffusers' layout, a name on the hub, or a single file.
        options: options of ``pipelines.load_pipeline``: revision, variant, vae.

    Raises:
        ModelError: the source is no model, is incomplete, or has an architecture that the studio does not support.
    """
    options = options or {}
    is_file = Path(source).is_file()
    config = (options.get("config") or pipelines.model_config(source)) if is_file else source
    try:
        return _read(source, config, options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"The model {source!r} cannot be used: its JSON files are incomplete ({error}).") from error


def _read(source: str, config: str, options: Mapping[str, Any]) -> Base:
    revision = options.get("revision")
    index = _json(source, config, _INDEX, revision)
    parts = {name: kind for name, kind in index.items() if isinstance(kind, list) and kind != [None, None]}
    denoiser = "unet" if "unet" in parts else "transformer"
    if not {denoiser, "vae", "scheduler"} <= parts.keys():
        raise ModelError(
            f"{source!r} is a {index.get('_class_name')}: the studio supports models of the trainable "
            "families, whose folders hold a unet or a transformer, a vae and a scheduler."
        )
    if Path(source).is_dir():
        _check_weights(Path(source), [name for name in parts if not name.startswith(_NO_WEIGHTS)])
    unet = _json(source, config, f"{denoiser}/config.json", revision)
    vae = _json(source, config, "vae/config.json", revision)
    scheduler = _json(source, config, "scheduler/scheduler_config.json", revision)
    kind = KINDS.get(index["_class_name"], PipelineKind())
    halvings = vae["temperal_downsample"] if "temperal_downsample" in vae else vae["block_out_channels"][1:]
    scale = 2 ** len(halvings)
    sides = unet.get("sample_size") or (_PACKED_SIDE if kind.packing > 1 else None)
    if not (sides or kind.size):
        raise ModelError(f"The model {source!r} cannot be used: its {denoiser}/config.json has no sample_size.")
    return Base(
        source=source,
        options=options,
        name=public_name(source),
        size=kind.size or (min(sides) if isinstance(sides, list) else sides) * scale,
        multiple=max(unet.get("patch_size") or 1, *unet.get("all_patch_size", (1,)), int(kind.packing**0.5)) * scale,
        schedulers=scheduler_names(parts["scheduler"][1], scheduler),
        guidance_scale=kind.guidance_scale,
        text_encoders_train=kind.text_encoders_train,
        text_encoders=sum(name.startswith("text_encoder") for name in parts),
        is_embedded=Path(source).exists() and Path(source).resolve() == EMBEDDED_BASE,
    )


def _json(source: str, config: str, name: str, revision: str | None) -> dict[str, Any]:
    try:
        return read_json(local_folder(config, None, [name], revision=revision) / name)
    except AdapterFileError as error:
        raise ModelError(
            f"The model {source!r} cannot be used: {error} Give a folder in diffusers' layout, with {_INDEX} beside "
            "unet, text_encoder, tokenizer, vae and scheduler, or a model's name on the hub."
        ) from error


def _check_weights(folder: Path, parts: list[str]) -> None:
    for name in parts:
        if not any((folder / name).glob("*.safetensors")):
            reason = explain_weights(str(folder)) or f"there is no .safetensors file in its {name}."
            raise ModelError(f"The model {str(folder)!r} is incomplete: {reason}")
