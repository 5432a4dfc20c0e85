"""Folders of pictures: what is in them, what is named in a warning, and what training sees of each picture."""

import logging
import re

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats import pictures as pictures_module
from hra_diffusion.formats.pictures import parse_colour, read_layers, read_picture
from hra_diffusion.training.dataset import (
    check_pictures,
    picture_files,
    read_pictures,
    report_duplicates,
)

FOUR_COLOURS = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 240]]], np.uint8)
QUARTERS = np.kron(FOUR_COLOURS, np.ones((16, 24, 1), np.uint8))


# How a camera stores an upright picture under each value of the EXIF tag Orientation (Exif 2.32, table 6).
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
def test_exif_orientation_is_honoured(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](QUARTERS))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png")), QUARTERS)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_module, "MAX_PIXELS", 100)
    Image.new("RGB", (11, 10)).save(tmp_path / "big.png")
    with pytest.raises(ImageError, match=r"big\.png has 11×10 pixels.*scale it down"):
        read_picture(tmp_path / "big.png")


def test_a_stray_file_is_named_in_a_warning_and_the_rest_goes_on(pictures, caplog):
    (pictures / "notes.txt").write_text("buy dog food")
    (pictures / ".DS_Store").write_bytes(b"\0")
    (pictures / "subject.toml").write_text("")
    (pictures / "held_out").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(read_pictures(picture_files(pictures), pictures)) == 4
    assert "Left out 1 of 5 files" in caplog.text
    assert "notes.txt" in caplog.text
    assert ".DS_Store" not in caplog.text


def test_a_link_that_leads_nowhere_is_named(pictures, caplog):
    (pictures / "lost.jpg").symlink_to(pictures / "nix.jpg")
    check_pictures(picture_files(pictures), pictures)
    assert "Left out 1 of 5 files" in caplog.text
    assert "lost.jpg" in caplog.text


def test_pictures_that_move_are_named_and_the_first_frame_is_used(pictures, caplog):
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    red.save(pictures / "moving.webp", save_all=True, append_images=[blue], lossless=True)
    photos = check_pictures(picture_files(pictures), pictures)
    assert len(photos) == 5
    assert photos[-1].read().getcolors() == [(1200, (255, 0, 0))]
    assert "the first frame is used: moving.webp." in caplog.text


def test_pictures_saved_twice_are_reported_and_no_others(pictures, caplog):
    report_duplicates(check_pictures(picture_files(pictures), pictures))
    assert not caplog.text
    noise = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    picture = Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)
    picture.save(pictures / "4.png")
    picture.resize((80, 80)).save(pictures / "copy.jpg")
    report_duplicates(check_pictures(picture_files(pictures), pictures))
    assert re.search(r"look the same.*4\.png and \S*copy\.jpg\.$", caplog.text)


@pytest.mark.parametrize(
    ("name", "colour"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("#12345678", (18, 52, 86))]
)
def test_colours_have_names(name, colour):
    assert parse_colour(name) == colour


def test_an_unknown_colour_is_refused():
    with pytest.raises(ConfigError, match="--background_color is 'blak': give a name"):
        parse_colour("blak")


def test_a_folder_without_a_picture_is_an_error(tmp_path):
    with pytest.raises(ImageError, match=r"There is no picture .*nix\.png: check the path"):
        read_layers(tmp_path / "nix.png")
    with pytest.raises(ImageError, match=r"cannot be read: Is a directory"):
        read_layers(tmp_path)
    with pytest.raises(ImageError, match="holds no pictures"):
        read_pictures(picture_files(tmp_path), tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ImageError, match=r"holds no pictures.*notes\.txt"):
        read_pictures(picture_files(tmp_path), tmp_path)
    with pytest.raises(ImageError, match="no picture folder"):
        picture_files(tmp_path / "nix")
