"""``hra-diffusion inspect``: what an adapter holds, layer by layer, and how it was made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig
from hra_diffusion.training.config.file import flat_values, read_run


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Say what an adapter holds: rank, layers, how far each turns, its base model and the run that made it."""

    adapter: tyro.conf.Positional[Path]
    """An adapter's folder, a checkpoint's, or the output folder of a run."""
    layers: bool = True
    """List the layers, those that turn most first."""


def main(arguments: Sequence[str]) -> None:
    """Print what an adapter holds."""
    config = parse_settings(InspectConfig, arguments, prog="hra-diffusion inspect")
    print("\n".join(report(config)))


def report(config: InspectConfig) -> Iterator[str]:
    """Yield the lines about an adapter.

    Raises:
        AdapterFileError: there is none, or it is damaged.
    """
    from hra_diffusion.formats.contents import read_components  # imports torch: not for --help
    from hra_diffusion.formats.folders import component_folders, tokens_beside

    components = read_components(config.adapter)
    base = next((each.config.base_model_name_or_path for each in components), None)
    yield f"base model  {base or 'not said'}"
    for each in components:
        yield f"{each.name}: rank {each.config.r}, {len(each.layers)} layers, {each.parameters:,} parameters"
        angles = [layer.angle for layer in each.layers] or [0.0]
        yield f"  turns by {max(angles):.1f}° at most, by {sum(angles) / len(angles):.1f}° in the mean of its layers"
        for layer in sorted(each.layers, key=lambda layer: -layer.angle) if config.layers else ():
            shape = "×".join(map(str, layer.shape))
            yield f"  {layer.angle:6.1f}°  {shape:>9}  {layer.name}"
    for text_encoder, words in tokens_beside(component_folders(config.adapter)).items():
        counts = (f"{word} ({len(vectors)} vectors)" for word, vectors in words.items())
        yield f"new words of {text_encoder}: {', '.join(counts)}"
    yield from _run_settings(config.adapter)


def _run_settings(folder: Path) -> Iterator[str]:
    """Yield what the run that made an adapter was told other than the defaults, if its config.toml is there."""
    from hra_diffusion.formats.folders import find_encoder

    fresh = ControlNetConfig() if find_encoder(folder) else DreamBoothConfig()
    run = read_run(folder, fresh)
    default = flat_values(fresh)
    told = {name: value for name, value in flat_values(run).items() if value != default[name]}
    if told:
        yield "trained with"
    for name, value in told.items():
        yield f"  {name} = {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
