"""Folders of pictures: what is in them, what is named in a warning, and what training sees of each picture."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.training import pictures as pictures_module
from hra_diffusion.training.dataset import (
    check_pictures,
    picture_files,
    read_pictures,
    report_duplicates,
    square_crops,
    to_tensor,
)
from hra_diffusion.training.pictures import parse_colour, read_picture

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "dreambooth" / "dog6"

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
    with pytest.raises(ImageError, match="holds no pictures"):
        read_pictures(picture_files(tmp_path), tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ImageError, match=r"holds no pictures.*notes\.txt"):
        read_pictures(picture_files(tmp_path), tmp_path)
    with pytest.raises(ImageError, match="no picture folder"):
        picture_files(tmp_path / "nix")


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (100, 41), (41, 100), (5, 7), (1, 300)])
@pytest.mark.parametrize("center_crop", [True, False])
def test_crops_are_squares_that_cover_the_picture(size, center_crop):
    ramp = np.broadcast_to(np.linspace(0, 255, max(size)), (min(size), max(size)))
    picture = Image.fromarray((ramp if size[0] > size[1] else ramp.T).astype(np.uint8)).convert("RGB").resize(size)
    crops = square_crops(picture, 32, center_crop=center_crop)
    assert {crop.size for crop in crops} == {(32, 32)}
    assert len(crops) == (1 if center_crop or size[0] == size[1] else 3)
    means = [np.asarray(crop).mean() for crop in crops]
    if len(means) == 3 and max(size) > 2 * min(size):  # the middle, the dark end, the bright end
        assert means[1] < means[0] < means[2]


def test_tensors_span_minus_one_to_one():
    tensor = to_tensor(Image.fromarray(np.array([[[0, 255, 0]], [[255, 0, 255]]], np.uint8)))
    assert tensor.shape == (3, 2, 1)
    assert tensor.flatten(1).tolist() == [[-1, 1], [1, -1], [-1, 1]]


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no photographs here")
def test_photographs_decode_and_crop():
    photographs = read_pictures(picture_files(PHOTOGRAPHS), PHOTOGRAPHS)
    assert len(photographs) == 5
    for photograph in photographs:
        (crop,) = square_crops(photograph, 128, center_crop=True)
        reduced = photograph.resize((128, 128), Image.Resampling.BOX)
        assert np.abs(np.asarray(crop).astype(float) - np.asarray(reduced)).mean() < 4
