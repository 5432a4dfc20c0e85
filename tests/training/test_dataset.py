"""Image folders: which files belong to them, warnings about the others, and decoding."""

import logging
import re

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats import images as images_module
from hra_diffusion.formats.images import parse_color, read_image, read_layers
from hra_diffusion.training.data.dataset import check_images, read_images, report_duplicates
from hra_diffusion.training.data.inventory import image_files

FOUR_COLORS = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 240]]], np.uint8)
QUARTERS = np.kron(FOUR_COLORS, np.ones((16, 24, 1), np.uint8))


# The pixels that a camera stores of an upright image for each EXIF Orientation (Exif 2.32, table 6).
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](QUARTERS))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), QUARTERS)


def test_an_image_with_too_many_pixels_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_PIXELS", 100)
    Image.new("RGB", (11, 10)).save(tmp_path / "big.png")
    with pytest.raises(ImageError, match=r"big\.png has 11×10 pixels.*scale it down"):
        read_image(tmp_path / "big.png")


def test_an_unreadable_file_is_reported_and_the_others_are_read(images, caplog):
    (images / "notes.txt").write_text("buy dog food")
    (images / ".DS_Store").write_bytes(b"\0")
    (images / "subject.toml").write_text("")
    (images / "held_out").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(read_images(image_files(images), images)) == 4
    assert "Left out 1 of 5 files" in caplog.text
    assert "notes.txt" in caplog.text
    assert ".DS_Store" not in caplog.text


def test_a_broken_link_is_reported(images, caplog):
    (images / "lost.jpg").symlink_to(images / "nix.jpg")
    check_images(image_files(images), images)
    assert "Left out 1 of 5 files" in caplog.text
    assert "lost.jpg" in caplog.text


def test_animated_images_are_reported_and_their_first_frame_is_used(images, caplog):
    red, blue = (Image.new("RGB", (40, 30), color) for color in ("red", "blue"))
    red.save(images / "moving.webp", save_all=True, append_images=[blue], lossless=True)
    photos = check_images(image_files(images), images)
    assert len(photos) == 5
    assert photos[-1].decode().getcolors() == [(1200, (255, 0, 0))]
    assert "the first frame is used: moving.webp." in caplog.text


def test_duplicate_images_are_reported_and_no_others(images, caplog):
    report_duplicates(check_images(image_files(images), images))
    assert not caplog.text
    noise = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    image = Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)
    image.save(images / "4.png")
    image.resize((80, 80)).save(images / "copy.jpg")
    report_duplicates(check_images(image_files(images), images))
    assert re.search(r"count twice: \S*4\.png and \S*copy\.jpg\. Remove one of each two\.$", caplog.text)


@pytest.mark.parametrize(
    ("name", "color"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("#12345678", (18, 52, 86))]
)
def test_colors_are_names_or_hexadecimal(name, color):
    assert parse_color(name) == color


def test_an_unknown_color_is_refused():
    with pytest.raises(ConfigError, match="--background_color is 'blak': give a name"):
        parse_color("blak")


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ImageError, match=r"There is no image .*nix\.png: check the path"):
        read_layers(tmp_path / "nix.png")
    with pytest.raises(ImageError, match=r"cannot be read: Is a directory"):
        read_layers(tmp_path)
    with pytest.raises(ImageError, match="holds no images"):
        read_images(image_files(tmp_path), tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ImageError, match=r"holds no images.*notes\.txt"):
        read_images(image_files(tmp_path), tmp_path)
    with pytest.raises(ImageError, match="no image folder"):
        image_files(tmp_path / "nix")
