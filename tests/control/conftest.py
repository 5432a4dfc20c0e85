"""An image with edges."""

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def shapes():
    """A blue rectangle on white."""
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).rectangle((8, 6, 22, 27), fill="blue")
    return image
