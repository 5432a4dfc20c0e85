"""A picture that conditions are made of."""

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def shapes():
    """A picture with edges."""
    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).rectangle((8, 6, 22, 27), fill="blue")
    return picture
