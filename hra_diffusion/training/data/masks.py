"""Masks of the training images: their transparency, or gray images of the same names in a folder.

The name may end in _mask or -masklabel (OneTrainer): 1_mask.png is a mask of 1.jpg, in another folder or beside it.

White has the loss weight 1, black ``unmasked_weight``, gray a weight in between.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.formats.images import check_same_shape, read_layers
from hra_diffusion.training.config import DataConfig
from hra_diffusion.training.data.dataset import Photo
from hra_diffusion.training.data.inventory import entries, image_files, masked, report_unused

logger = logging.getLogger(__name__)


def find_masks(photos: Sequence[Photo], data: DataConfig) -> dict[Path, Path]:
    """Find and check the masks of images; images without a mask are not in the result.

    Raises:
        ImageError: the folder of masks does not exist, or a mask cannot be used.
    """
    masks: dict[Path, Path] = {}
    if data.alpha_mask:
        masks |= {photo.path: photo.path for photo in photos if photo.has_alpha}
    if data.mask_data_dir:
        if not data.mask_data_dir.is_dir():
            raise ImageError(f"--mask_data_dir is {data.mask_data_dir}, which is no folder: correct the path.")
        # Masks of several subjects are in sub-folders, like their images.
        folder = data.mask_data_dir / photos[0].path.parent.relative_to(data.instance_data_dir or Path())
        beside_images = folder.resolve() == photos[0].path.parent.resolve()
        by_stem = _masks_by_stem(folder, beside_images) if folder.is_dir() else {}
        in_folder = {photo.path: by_stem[photo.path.stem] for photo in photos if photo.path.stem in by_stem}
        if not in_folder and data.instance_data_dir and data.mask_data_dir.samefile(data.instance_data_dir):
            raise ImageError(
                f"--mask_data_dir is {data.mask_data_dir}, which holds the images themselves: name a folder with a "
                "mask for each image, add masks such as 1_mask.png, or use their transparency with --alpha_mask."
            )
        masks |= in_folder
    for photo in photos:
        if photo.path in masks:
            read_mask(photo, masks[photo.path])
    missing = [photo.path.name for photo in photos if photo.path not in masks]
    if missing and (data.alpha_mask or data.mask_data_dir):
        folder = photos[0].path.parent
        logger.warning("Images of %s have no mask, so all of their pixels count fully: %s.", folder, ", ".join(missing))
    return masks


def report_unused_masks(folder: Path, masks: Iterable[Path]) -> None:
    """Report what the folder of masks, and its folders with used masks, hold beside the used masks."""
    used = set(masks)
    folders = {path.parent for path in used}
    for masks_folder in {folder, *folders}:
        if masks_folder.is_relative_to(folder):
            unused = dict.fromkeys(image_files(masks_folder), "no image of this name")
            report_unused(masks_folder, [*used, *folders], unused)


def _masks_by_stem(folder: Path, beside_images: bool) -> dict[str, Path]:
    """Return the masks of a folder by the stems of their images; a mask of the same name has precedence."""
    named = {stem: path for path in entries(folder) if (stem := masked(path))}
    return named if beside_images else named | {path.stem: path for path in image_files(folder)}


def read_mask(photo: Photo, path: Path) -> Image.Image:
    """Read the mask of an image, in mode L and of the image's size.

    If ``path`` is the image itself, the mask is its transparency.

    Raises:
        ImageError: the mask cannot be read, has another aspect ratio than the image, or is black.
    """
    layers = read_layers(path)
    mask = layers.alpha if path == photo.path else layers.over((0, 0, 0)).convert("L")
    assert mask  # find_masks names an image as its mask only if it has transparency
    check_same_shape(f"mask {path}", mask.size, photo.size)
    if mask.getextrema()[1] == 0:
        raise ImageError(f"The mask {path} is black, so its image has no weight: remove the mask or the image.")
    return mask if mask.size == photo.size else mask.resize(photo.size, Image.Resampling.BILINEAR)
