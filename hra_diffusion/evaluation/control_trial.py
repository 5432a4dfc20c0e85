"""The pairs that a control was not trained on, as a trial of whether it is followed."""

from pathlib import Path
from typing import Any

from hra_diffusion.control import fit
from hra_diffusion.formats.images import parse_color, read_image
from hra_diffusion.metrics.control_evaluation import Trial
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.controlnet import condition_of
from hra_diffusion.training.data.pairs import read_pairs


def trial_of(
    folder: Path, annotator: Any, run: ControlNetConfig, side: int, *, num_pairs: int, batch_size: int
) -> Trial:
    """Read the first pairs of a folder, which are drawn as a run's previews are.

    Masks are in its sub-folder ``masks``, the names of things in its metadata; either may be missing.

    Args:
        folder: of pairs.
        annotator: what makes their conditions.
        run: settings of pairs and previews.
        side: of the images in pixels.
        num_pairs: how many, at most.
        batch_size: images drawn at once.

    Raises:
        HRAError: the pairs cannot be used.
    """
    size, background = (side, side), parse_color(run.pairs.background_color)
    pairs = read_pairs(folder, with_values(run, {"max_train_samples": num_pairs}).pairs)
    paths = [pair.example.photo.path for pair in pairs]
    masks = [path.parent / "masks" / f"{path.stem}.png" for path in paths]
    return Trial(
        prompts=[pair.example.caption for pair in pairs],
        real=[fit(pair.example.photo.read(background), size) for pair in pairs],
        conditions=[condition_of(pair, annotator, size, background) for pair in pairs],
        masks=[fit(read_image(mask), size, labels=True) for mask in masks] if all(m.is_file() for m in masks) else (),
        objects=[pair.row["object"] for pair in pairs] if all("object" in pair.row for pair in pairs) else (),
        options=run.validation.options(side),
        batch_size=batch_size,
    )
