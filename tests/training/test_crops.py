"""Views and buckets: nothing of an image is lost for good, and what is seen depends on seed, image and settings."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from hra_diffusion.training.config import DataConfig
from hra_diffusion.training.data.buckets import bucket_sizes, nearest_size
from hra_diffusion.training.data.crops import cover, to_tensor, views
from hra_diffusion.training.data.dataset import image_files, read_images

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "dreambooth" / "dog6"


def images_of(image, size=(32, 32), seed=0, name="a", **settings):
    covering = cover(image, size)
    return [view.image(covering, size) for view in views(image.size, size, DataConfig(**settings), seed, name)]


def noise(size=(32, 32)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


def pixels(images):
    return [np.asarray(image).tolist() for image in images]


@pytest.mark.parametrize("own", [(32, 32), (33, 32), (100, 41), (41, 100), (5, 7), (1, 300)])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (48, 20)])
@pytest.mark.parametrize("center_crop", [True, False])
def test_crops_have_their_size_and_together_cover_the_image(own, size, center_crop):
    ramp = np.broadcast_to(np.linspace(0, 255, max(own)), (min(own), max(own)))
    image = Image.fromarray((ramp if own[0] > own[1] else ramp.T).astype(np.uint8)).convert("RGB").resize(own)
    crops = images_of(image, size, center_crop=center_crop)
    assert {crop.size for crop in crops} == {size}
    assert len(crops) == (1 if center_crop or cover(image, size).size == size else 3)
    if len(crops) == 3 and max(own) > 4 * min(own):  # the middle, the dark end, the bright end
        middle, dark, bright = (np.asarray(crop).mean() for crop in crops)
        assert dark < middle < bright


def test_a_view_knows_where_it_comes_from():
    """Height and width of the original, top and left of the crop once scaled, height and width of the crop."""
    covering = cover(noise((120, 80)), (40, 40))
    seen = views((120, 80), (40, 40), DataConfig(random_flip=True), 0, "a")
    told = [view.sizes((120, 80), covering.size, (40, 40)) for view in seen]
    assert told == [(80, 120, 0, left, 40, 40) for left in (10, 0, 20, 10, 20, 0)]
    for view, (_, _, top, left, height, width) in zip(seen, told, strict=True):
        source = ImageOps.mirror(covering) if view.mirrored else covering
        assert pixels([source.crop((left, top, left + width, top + height))]) == pixels(
            [view.image(covering, (40, 40))]
        )


def test_flipped_views_are_mirror_images_of_the_others():
    straight = pixels(images_of(noise((64, 32))))
    both = pixels(images_of(noise((64, 32)), random_flip=True))
    assert both[:3] == straight
    assert both[3:] == [np.fliplr(view).tolist() for view in straight]


def test_jitter_changes_colors_a_little_and_leaves_every_crop_once_as_it_is():
    plain = images_of(noise((64, 32)))
    tinted = images_of(noise((64, 32)), color_jitter=0.1)
    assert len(tinted) == 4 * len(plain)
    assert pixels(tinted[:3]) == pixels(plain)
    for view, crop in zip(tinted[3:], 3 * plain, strict=True):
        difference = np.abs(np.asarray(view, float) - np.asarray(crop)).mean()
        assert 0 < difference < 0.3 * 128
    assert len({np.asarray(view).tobytes() for view in tinted}) == 12


def test_views_depend_on_seed_image_and_settings_and_on_nothing_else():
    def tints(**arguments):
        return pixels(images_of(noise(), color_jitter=0.2, **arguments))

    assert tints() == tints()
    assert tints()[1:] != tints(seed=1)[1:]
    assert tints()[1:] != tints(name="b")[1:]


def test_tensors_span_minus_one_to_one():
    tensor = to_tensor(Image.fromarray(np.array([[[0, 255, 0]], [[255, 0, 255]]], np.uint8)))
    assert tensor.shape == (3, 2, 1)
    assert tensor.flatten(1).tolist() == [[-1, 1], [1, -1], [-1, 1]]


@pytest.mark.parametrize(("resolution", "step"), [(512, 8), (1024, 8), (1024, 16), (256, 4), (32, 4), (8, 8)])
def test_buckets_have_about_one_area_and_sides_a_model_can_take(resolution, step):
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0
        assert 0.7 * resolution**2 < width * height <= resolution**2
        assert resolution / 2 <= min(width, height) <= max(width, height) <= 2 * resolution


@pytest.mark.parametrize("aspect", np.geomspace(0.4, 2.5, 25))
def test_a_bucket_keeps_nearly_the_whole_image(aspect):
    image = (round(1000 * aspect), 1000)
    width, height = nearest_size(image, bucket_sizes(512, 8))
    kept = min(width / height / aspect, aspect * height / width)
    assert kept > 0.87


def test_the_bucket_of_an_extreme_image_is_the_longest():
    assert nearest_size((1, 300), bucket_sizes(512, 8)) == (256, 1024)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no photographs here")
def test_photographs_decode_and_crop():
    photographs = read_images(image_files(PHOTOGRAPHS), PHOTOGRAPHS)
    assert len(photographs) == 5
    for photograph in photographs:
        (crop,) = images_of(photograph, (128, 128), center_crop=True)
        reduced = photograph.resize((128, 128), Image.Resampling.BOX)
        assert np.abs(np.asarray(crop).astype(float) - np.asarray(reduced)).mean() < 4
