"""``hra-diffusion inspect``: print an adapter's layers, base model and training settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig
from hra_diffusion.training.config.file import flat_values, read_run


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Print an adapter's rank, layers, rotation angles, base model and training settings."""

    adapter: tyro.conf.Positional[Path]
    """The folder of an adapter or a checkpoint, or the output folder of a run."""
    layers: bool = True
    """List the layers, by decreasing rotation angle."""


def main(arguments: Sequence[str]) -> None:
    """Print the contents of an adapter."""
    config = parse_settings(InspectConfig, arguments, prog="hra-diffusion inspect")
    print("\n".join(describe_adapter(config)))


def describe_adapter(config: InspectConfig) -> Iterator[str]:
    """Yield the lines of an adapter's description.

    Raises:
        AdapterFileError: the adapter is missing or damaged.
    """
    from hra_diffusion.formats.contents import read_components  # imports torch: not for --help
    from hra_diffusion.formats.folders import component_folders, tokens_beside

    components = read_components(config.adapter)
    base = next((component.config.base_model_name_or_path for component in components), None)
    yield f"base model  {base or 'unknown'}"
    for component in components:
        layers = component.layers
        ranks = ", ".join(map(str, sorted({layer.shape[1] for layer in layers}) or [component.config.r]))
        magnitudes = ", with magnitudes" if component.config.use_magnitude else ""
        yield f"{component.name}: rank {ranks}, {len(layers)} layers, {component.parameters:,} parameters{magnitudes}"
        angles = [layer.angle for layer in layers] or [0.0]
        yield f"  rotation: largest angle {max(angles):.1f}°, mean of the layers {sum(angles) / len(angles):.1f}°"
        for layer in sorted(layers, key=lambda layer: -layer.angle) if config.layers else ():
            shape = "×".join(map(str, layer.shape))
            yield f"  {layer.angle:6.1f}°  {shape:>9}  {layer.name}"
    for text_encoder, tokens in tokens_beside(component_folders(config.adapter)).items():
        counts = (f"{token} ({len(vectors)} vectors)" for token, vectors in tokens.items())
        yield f"tokens of {text_encoder}: {', '.join(counts)}"
    yield from _run_settings(config.adapter)


def _run_settings(folder: Path) -> Iterator[str]:
    """Yield the training settings other than the defaults, if the run has a config.toml."""
    from hra_diffusion.formats.folders import find_encoder

    config = ControlNetConfig() if find_encoder(folder) else DreamBoothConfig()
    run = read_run(folder, config)
    default = flat_values(config)
    settings = {name: value for name, value in flat_values(run).items() if value != default[name]}
    if settings:
        yield "trained with"
    for name, value in settings.items():
        yield f"  {name} = {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
