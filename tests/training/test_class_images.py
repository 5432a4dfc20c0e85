"""Class images: generated at training size, reused and completed, and never mixed with those of other settings."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.pipelines import load_hra_weights, load_pipeline
from hra_diffusion.training.data.class_images import ClassImages


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    return load_pipeline(str(tiny_sd))


@pytest.fixture
def images(pipe, tmp_path):
    return ClassImages(
        folder=tmp_path / "class",
        user_folders=[tmp_path / "class"],
        count=5,
        pipe=pipe,
        prompt="a photo of a dog",
        resolution=24,
        steps=2,
        guidance_scale=3.0,
        seed=0,
        batch_size=2,
    )


def contents(images):
    return {path.name: path.read_bytes() for path in sorted(images.folder.iterdir())}


def test_class_images_are_generated_in_batches_at_training_size(images):
    assert list(images.generate_missing()) == [2, 4, 5]
    assert [image.size for image in images.read_photos()] == [(24, 24)] * 5
    assert len({image.decode().tobytes() for image in images.read_photos()}) == 5


def test_only_missing_images_are_generated_again_and_are_the_same(images):
    list(images.generate_missing())
    before = contents(images)
    images.files[2].unlink()
    assert list(images.generate_missing()) == [5]
    after = contents(images)
    generated = images.files[2].name
    assert {name: before[name] for name in before if name != generated}.items() <= after.items()
    pixels = [np.asarray(Image.open(io.BytesIO(files[generated]))).astype(int) for files in (before, after)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1  # in a batch of another size, rounding differs
    assert list(images.generate_missing()) == []


def test_interrupted_generation_resumes_with_the_next_image(images):
    next(images.generate_missing())
    assert list(replace(images).generate_missing()) == [4, 5]


@pytest.mark.parametrize("change", [{"prompt": "a cat"}, {"seed": 1}, {"resolution": 32}, {"guidance_scale": 4.0}])
def test_images_of_other_settings_are_not_reused(images, change):
    list(images.generate_missing())
    before = contents(images)
    other = replace(images, **change)
    assert list(other.generate_missing())[-1] == 5
    assert not set(other.files) & set(images.files)
    assert before.items() <= contents(images).items()


def test_another_models_images_are_not_reused(images, make_model, tmp_path):
    other = load_pipeline(str(make_model(tmp_path / "other", seed=1)))
    assert not set(replace(images, pipe=other).files) & set(images.files)


def test_the_users_images_come_first_and_are_completed(images):
    images.folder.mkdir()
    for name in ("me.png", "you.jpg"):
        Image.new("RGB", (50, 30), "red").save(images.folder / name)
    (images.folder / "Thumbs.db").touch()
    assert list(images.generate_missing()) == [4, 5]
    assert [path.name for path in images.files[:2]] == ["me.png", "you.jpg"]
    assert len(images.read_photos()) == 5
    assert list(replace(images, count=1).generate_missing()) == []
    assert len(replace(images, count=1).read_photos()) == 1


def test_the_base_model_generates_them_although_an_adapter_is_active(images, tiny_sd, trained):
    list(images.generate_missing())
    pipe = load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, trained)
    adapted = replace(images, pipe=pipe, folder=images.folder.with_name("again"))
    list(adapted.generate_missing())
    assert contents(adapted) == contents(images)
