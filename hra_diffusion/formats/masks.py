"""Masks of inpainting: images in white on black, or on transparency."""

from PIL import Image


def mask_of(image: Image.Image) -> Image.Image:
    """Return the mask that an image holds, in gray; transparent parts are black."""
    if "A" not in image.getbands():
        return image.convert("L")
    return Image.composite(image.convert("L"), Image.new("L", image.size), image.getchannel("A"))
