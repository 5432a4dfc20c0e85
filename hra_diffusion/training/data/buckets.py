"""Aspect-ratio buckets: a few sizes of about the same area, so that crops lose little of an image.

    w · h ≤ R²,   w and h multiples of a stride,   R/2 ≤ w, h ≤ 2R

for the resolution R, each w with the largest h (NovelAI, "Improvements on Stable Diffusion", 2022). Each image has the
bucket of the nearest aspect ratio; no image is left out, however long it is.
"""

from collections.abc import Iterable
from math import log

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.kinds import default_size, size_multiple
from hra_diffusion.pipelines.protocol import Pipeline

Size = tuple[int, int]
"""Width and height in pixels."""


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """Return the bucket sizes of a resolution.

    The stride is 8 ``step``, but at most R/8: 64 for Stable Diffusion at 512.
    """
    stride = min(8, max(1, resolution // (8 * step))) * step
    longest = 2 * resolution // stride * stride
    sizes = {(resolution, resolution)}
    for width in range(-(-resolution // (2 * stride)) * stride, longest + 1, stride):
        height = min(resolution**2 // width // stride * stride, longest)
        sizes |= {(width, height), (height, width)}
    return sorted(size for size in sizes if 2 * min(size) >= resolution)


def nearest_size(image: Size, sizes: Iterable[Size]) -> Size:
    """Return the size with the aspect ratio nearest to the image's."""
    width, height = image
    return min(sizes, key=lambda size: abs(log(size[0] / size[1]) - log(width / height)))


def sizes_for(images: Iterable[Size], resolution: int, step: int, in_buckets: bool) -> list[Size]:
    """Return the training size of each image: a square, or the nearest bucket."""
    sizes = bucket_sizes(resolution, step) if in_buckets else [(resolution, resolution)]
    return [nearest_size(image, sizes) for image in images]


def checked_resolution(wanted: int | None, pipe: Pipeline) -> int:
    """Return the checked resolution, by default the model's.

    Raises:
        ConfigError: the resolution is no multiple of the model's size step, or the model has no default.
    """
    step = size_multiple(pipe)
    if wanted is not None and (wanted < step or wanted % step):
        raise ConfigError(
            f"--resolution is {wanted}, but this model works in steps of {step} pixels: "
            f"use {max(step, wanted // step * step)}."
        )
    if not (resolution := wanted or default_size(pipe)):
        raise ConfigError("The model has no default resolution: give one with --resolution.")
    return resolution
