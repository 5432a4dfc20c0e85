"""Descriptions of training images, a line each, as a dry run prints them."""

from collections.abc import Iterator, Sequence

from hra_diffusion.training.data.class_images import ClassImages
from hra_diffusion.training.data.crops import covering_size
from hra_diffusion.training.data.subjects import Example

LISTED = 40
"""Images to list; more are counted."""


def describe_images(examples: Sequence[Example], sizes: Sequence[tuple[int, int]], center_crop: bool) -> Iterator[str]:
    """Describe the size and crop of each image, in a line each; of many images, of the first."""
    pairs = list(zip(examples, sizes, strict=True))
    for example, size in pairs[:LISTED]:
        size_before = example.photo.size
        scale = max(side / before for side, before in zip(size, size_before, strict=True))
        whole = covering_size(size_before, size) == size
        crops = "whole" if whole else "its middle" if center_crop else "its middle and both ends"
        enlarged = f", enlarged {scale:.1f}×" if scale > 1 else ""
        times = f", {example.repeats} times a pass" if example.repeats > 1 else ""
        scaled = f"{size_before[0]}×{size_before[1]} → {size[0]}×{size[1]}"
        yield f'{example.photo.path.name}: {scaled}, {crops}{enlarged}{times}, "{example.caption}"'
    if pairs[LISTED:]:
        yield f"and {len(pairs) - LISTED} more"


def describe_class_images(images: ClassImages) -> str:
    """Describe the images of a class in a line."""
    missing = sum(not path.exists() for path in images.files)
    missing_text = f", {missing} of them to generate first, which takes extra time" if missing else ""
    return f'"{images.prompt}": {images.count} images in {images.folder}{missing_text}'
