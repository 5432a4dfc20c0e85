"""Pictures: decoded right, whatever the format says about orientation, depth and transparency, or refused by name."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.training import dataset
from hra_diffusion.training.dataset import picture_files, read_picture, read_pictures, square_crops, to_tensor

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


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    decoded = np.asarray(read_picture(tmp_path / "a.png")).astype(float)
    assert np.abs(decoded - grey[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_shows_the_background(tmp_path, mode):
    layer = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    layer.paste((0, 0, 0, 0), (0, 0, 2, 2))
    if mode == "P":
        palette = layer.convert("RGB").convert("P")
        palette.putdata([1, 1, 0, 0] * 2)
        palette.putpalette([0, 0, 0, 9, 9, 9])
        palette.save(tmp_path / "a.png", transparency=1)
    elif mode == "PA":
        layer.quantize(4).save(tmp_path / "a.png")
    else:
        layer.convert(mode).save(tmp_path / "a.png")
    decoded = np.asarray(read_picture(tmp_path / "a.png", background=(200, 100, 50)))
    assert (decoded[:, :2] == (200, 100, 50)).all()
    assert (decoded[:, 2:] == 0).all()


@pytest.mark.parametrize("file", ["a.png", "a.bmp", "a.gif", "a.webp", "a.avif", "a.jpg", "cmyk.jpg", "cmyk.tiff"])
def test_every_format_decodes_to_the_same_colours(tmp_path, file):
    picture = Image.fromarray(QUARTERS)
    if file.endswith("gif"):
        picture = picture.quantize(4)
    (picture.convert("CMYK") if file.startswith("cmyk") else picture).save(tmp_path / file)
    decoded = read_picture(tmp_path / file)
    assert decoded.mode == "RGB"
    middles = np.asarray(decoded).astype(int)[8::16, 12::24]
    assert np.abs(middles - FOUR_COLOURS).max() <= 5


def damage(path: Path, kind: str) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path, "JPEG")
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "text": b"not a picture", "empty": b"", "head": data[:30]}[kind]
    )
    return path


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "head"])
def test_a_damaged_file_is_refused_by_name(tmp_path, kind):
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        read_picture(damage(tmp_path / "bad.jpg", kind))


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_PIXELS", 100)
    Image.new("RGB", (11, 10)).save(tmp_path / "big.png")
    with pytest.raises(ImageError, match=r"big\.png has 11×10 pixels.*scale it down"):
        read_picture(tmp_path / "big.png")


def test_formats_that_are_no_pictures_are_never_tried(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(ImageError, match=r"a\.eps"):
        read_picture(tmp_path / "a.eps")


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
