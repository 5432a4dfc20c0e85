"""Which parts of an image count: its own transparency, or a gray image of the same name in a folder of masks.

White counts fully, black with the weight that the settings leave to the rest, gray in between.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.formats.images import check_same_shape, read_layers
from hra_diffusion.training.config import DataConfig
from hra_diffusion.training.data.dataset import Photo, image_files

logger = logging.getLogger(__name__)


def find_masks(photos: Sequence[Photo], data: DataConfig) -> dict[Path, Path]:
    """Find the masks of images, and check them; an image without a mask is not in the result.

    Raises:
        ImageError: there is no folder of masks, or one of the masks cannot be used.
    """
    masks: dict[Path, Path] = {}
    if data.alpha_mask:
        masks |= {photo.path: photo.path for photo in photos if photo.has_alpha}
    if data.mask_data_dir:
        if not data.mask_data_dir.is_dir():
            raise ImageError(f"There is no folder of masks {data.mask_data_dir}: correct --mask_data_dir.")
        if data.instance_data_dir and data.mask_data_dir.samefile(data.instance_data_dir):
            raise ImageError(
                f"--mask_data_dir is {data.mask_data_dir}, which holds the images themselves: name a folder with a "
                "mask for each, or take their transparency with --alpha_mask."
            )
        # Masks of several subjects lie in sub-folders, as their images do.
        folder = data.mask_data_dir / photos[0].path.parent.relative_to(data.instance_data_dir or Path())
        by_name = {path.stem: path for path in image_files(folder)} if folder.is_dir() else {}
        masks |= {photo.path: by_name[photo.path.stem] for photo in photos if photo.path.stem in by_name}
    for photo in photos:
        if photo.path in masks:
            read_mask(photo, masks[photo.path])
    missing = [photo.path.name for photo in photos if photo.path not in masks]
    if missing and (data.alpha_mask or data.mask_data_dir):
        folder = photos[0].path.parent
        logger.warning("Images of %s without a mask count as a whole: %s.", folder, ", ".join(missing))
    return masks


def read_mask(photo: Photo, path: Path) -> Image.Image:
    """Read the mask of an image, in mode L and of the image's size; the image's own path is its transparency.

    Raises:
        ImageError: it cannot be read, has another shape than the image, or is black.
    """
    layers = read_layers(path)
    mask = layers.alpha if path == photo.path else layers.over((0, 0, 0)).convert("L")
    assert mask  # only images with transparency are their own masks
    check_same_shape(f"mask {path}", mask.size, photo.size)
    if mask.getextrema()[1] == 0:
        raise ImageError(f"The mask {path} is black, so nothing of its image counts: remove one of the two.")
    return mask if mask.size == photo.size else mask.resize(photo.size, Image.Resampling.BILINEAR)
