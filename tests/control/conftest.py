"""An image that conditions are made of."""

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def shapes():
    """An image with edges."""
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).rectangle((8, 6, 22, 27), fill="blue")
    return image
