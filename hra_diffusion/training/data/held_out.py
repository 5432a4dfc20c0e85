"""Held-out images: images of the subjects for the validation loss, which are not trained on.

They are a share of the subjects' images (--validation_split), or the images in the sub-folders held_out.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import DataConfig
from hra_diffusion.training.data.inventory import HELD_OUT
from hra_diffusion.training.data.subjects import Example, Subject, read_examples
from hra_diffusion.training.rng import endless_shuffle


def split_examples(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split the images of a subject into those to train on and held-out ones, both in their order.

    Args:
        examples: the images of one subject.
        share: share of the held-out images, from 0 to less than 1; above 0, there is at least one.
        seed: seed of the choice.

    Raises:
        ConfigError: no image would be left to train on.
    """
    count = max(1, round(share * len(examples))) if share else 0
    if count >= len(examples):
        folder = examples[0].photo.path.parent
        raise ConfigError(
            f"--validation_split {share:g} holds out {count} of {len(examples)} images of {folder}, which leaves none "
            "to train on: add images, give a smaller share, or put images into its sub-folder held_out instead."
        )
    chosen = set(endless_shuffle(seed, "held-out images", len(examples), 0, count))
    kept = [example for index, example in enumerate(examples) if index not in chosen]
    return kept, [examples[index] for index in sorted(chosen)]


def held_out_examples(subjects: Sequence[Subject], root: Path, data: DataConfig) -> list[Example]:
    """Read the images in the sub-folders held_out of subjects, or of the folder of one subject's folder.

    Args:
        subjects: the subjects.
        root: the folder of --instance_data_dir.
        data: settings of the images; masks are not used.

    Raises:
        ConfigError: there is no such sub-folder.
        ImageError: no image of one can be read.
    """
    folders = {subject: subject.folder / HELD_OUT for subject in subjects}
    if len(subjects) == 1 and (root / HELD_OUT).is_dir():
        folders = {subjects[0]: root / HELD_OUT}
    existing = {subject: folder for subject, folder in folders.items() if folder.is_dir()}
    if not existing:
        raise ConfigError(
            f"--validate_every_n_steps needs held-out images, and {root} has no sub-folder {HELD_OUT}: add one with "
            "images of the subject, or hold out a share of the training images with --validation_split 0.2."
        )
    without_masks = replace(data, mask_data_dir=None, alpha_mask=False)
    return [
        example
        for subject, folder in existing.items()
        for example in read_examples(replace(subject, folder=folder, repeats=1), without_masks)
    ]
