"""Crops and buckets: together they cover the image, and they depend on seed, image and settings alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from hra_diffusion.training.config import DataConfig
from hra_diffusion.training.data.buckets import bucket_sizes, nearest_size
from hra_diffusion.training.data.crops import Crop, augmented_crops, cover, to_tensor
from hra_diffusion.training.data.dataset import read_images
from hra_diffusion.training.data.inventory import image_files

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "dreambooth" / "dog6"


def crop_images(image, size=(32, 32), seed=0, name="a", **settings):
    covering = cover(image, size)
    crops = augmented_crops(image.size, size, DataConfig(**settings), seed, name)
    return [crop.apply(covering, size) for crop in crops]


def noise(size=(32, 32)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


def pixels(images):
    return [np.asarray(image).tolist() for image in images]


@pytest.mark.parametrize("original", [(32, 32), (33, 32), (100, 41), (41, 100), (5, 7), (1, 300)])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (48, 20)])
@pytest.mark.parametrize("center_crop", [True, False])
def test_crops_have_their_size_and_together_cover_the_image(original, size, center_crop):
    ramp = np.broadcast_to(np.linspace(0, 255, max(original)), (min(original), max(original)))
    pixels = (ramp if original[0] > original[1] else ramp.T).astype(np.uint8)
    image = Image.fromarray(pixels).convert("RGB").resize(original)
    crops = crop_images(image, size, center_crop=center_crop)
    assert {crop.size for crop in crops} == {size}
    assert len(crops) == (1 if center_crop or cover(image, size).size == size else 3)
    if len(crops) == 3 and max(original) > 4 * min(original):  # the middle, the dark end, the bright end
        middle, dark, bright = (np.asarray(crop).mean() for crop in crops)
        assert dark < middle < bright


def test_time_ids_locate_the_crop_in_the_original():
    """Height and width of the original, top and left in the resized image, height and width of the crop."""
    covering = cover(noise((120, 80)), (40, 40))
    crops = augmented_crops((120, 80), (40, 40), DataConfig(random_flip=True), 0, "a")
    time_ids = [crop.time_ids((120, 80), covering.size, (40, 40)) for crop in crops]
    assert time_ids == [(80, 120, 0, left, 40, 40) for left in (10, 0, 20, 10, 20, 0)]
    for crop, (_, _, top, left, height, width) in zip(crops, time_ids, strict=True):
        source = ImageOps.mirror(covering) if crop.flipped else covering
        box = (left, top, left + width, top + height)
        assert pixels([source.crop(box)]) == pixels([crop.apply(covering, (40, 40))])


def test_flipped_crops_are_mirror_images_of_the_others():
    straight = pixels(crop_images(noise((64, 32))))
    both = pixels(crop_images(noise((64, 32)), random_flip=True))
    assert both[:3] == straight
    assert both[3:] == [np.fliplr(crop).tolist() for crop in straight]


def test_color_jitter_changes_colors_a_little_and_keeps_an_unchanged_copy_of_each_crop():
    plain = crop_images(noise((64, 32)))
    jittered = crop_images(noise((64, 32)), color_jitter=0.1)
    assert len(jittered) == 4 * len(plain)
    assert pixels(jittered[:3]) == pixels(plain)
    for changed, crop in zip(jittered[3:], 3 * plain, strict=True):
        difference = np.abs(np.asarray(changed, float) - np.asarray(crop)).mean()
        assert 0 < difference < 0.3 * 128
    assert len({np.asarray(crop).tobytes() for crop in jittered}) == 12


def test_color_jitter_depends_on_seed_and_image_alone():
    def jittered(**arguments):
        return pixels(crop_images(noise(), color_jitter=0.2, **arguments))

    assert jittered() == jittered()
    assert jittered()[1:] != jittered(seed=1)[1:]
    assert jittered()[1:] != jittered(name="b")[1:]


def test_latents_cached_by_version_0_1_are_found():
    """Names of cached files are digests of the text of their crops."""
    crop = Crop(position=0.5, flipped=True, jitter=(0.9, 1.0, 1.1))
    assert repr(crop) == "View(position=0.5, mirrored=True, tint=(0.9, 1.0, 1.1))"
    assert repr([Crop(position=0.0, flipped=False)]) == "[View(position=0.0, mirrored=False, tint=())]"


def test_tensors_span_minus_one_to_one():
    tensor = to_tensor(Image.fromarray(np.array([[[0, 255, 0]], [[255, 0, 255]]], np.uint8)))
    assert tensor.shape == (3, 2, 1)
    assert tensor.flatten(1).tolist() == [[-1, 1], [1, -1], [-1, 1]]


@pytest.mark.parametrize(("resolution", "step"), [(512, 8), (1024, 8), (1024, 16), (256, 4), (32, 4), (8, 8)])
def test_bucket_sizes_have_about_one_area_and_sides_of_whole_steps(resolution, step):
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0
        assert 0.7 * resolution**2 < width * height <= resolution**2
        assert resolution / 2 <= min(width, height) <= max(width, height) <= 2 * resolution


@pytest.mark.parametrize("aspect", np.geomspace(0.4, 2.5, 25))
def test_the_nearest_bucket_keeps_nearly_the_whole_image(aspect):
    image = (round(1000 * aspect), 1000)
    width, height = nearest_size(image, bucket_sizes(512, 8))
    kept = min(width / height / aspect, aspect * height / width)
    assert kept > 0.87


def test_the_bucket_of_an_extremely_long_image_is_the_longest():
    assert nearest_size((1, 300), bucket_sizes(512, 8)) == (256, 1024)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no photographs here")
def test_photographs_decode_and_crop():
    photographs = read_images(image_files(PHOTOGRAPHS), PHOTOGRAPHS)
    assert len(photographs) == 5
    for photograph in photographs:
        (crop,) = crop_images(photograph, (128, 128), center_crop=True)
        reduced = photograph.resize((128, 128), Image.Resampling.BOX)
        assert np.abs(np.asarray(crop).astype(float) - np.asarray(reduced)).mean() < 4
