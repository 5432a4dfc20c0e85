"""Masks: black has the weight --unmasked_weight in every crop, and nothing else changes."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.training.config import DataConfig, DreamBoothConfig, ModelConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.data.sources import SourceEncoder
from hra_diffusion.training.data.subjects import Subject, find_subjects, read_examples
from hra_diffusion.training.families import load
from hra_diffusion.training.objective.losses import DenoisingLoss


def examples(folder, **settings):
    data = DataConfig(instance_data_dir=folder, **settings)
    subject = Subject(folder=folder, prompt="a sks dog", class_prompt=None)
    return read_examples(subject, data), data


def half(size=(40, 40)):
    """Return a mask, white on the left and black on the right."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.fixture
def masks(tmp_path):
    (tmp_path / "masks").mkdir()
    return tmp_path / "masks"


@pytest.fixture(scope="module")
def family(tiny_sd):
    return load(ModelConfig(pretrained_model_name_or_path=str(tiny_sd)))


def weights(family, examples, data, size=(32, 32)):
    source_encoder = SourceEncoder(
        family=family, device=torch.device("cpu"), data=data, text_encoder_trains=False, seed=0, cache=Cache()
    )
    source = source_encoder.encode("instance", [(example, size) for example in examples])
    return [latent.weight for latent in source.latents]


def test_a_mask_weights_each_latent_pixel_in_every_crop(family, images, masks):
    half().save(masks / "0.jpg", quality=100)
    first, *others = weights(family, *examples(images, mask_data_dir=masks, unmasked_weight=0.25, random_flip=True))
    assert others == [None] * 3
    straight, mirrored = first
    assert torch.equal(mirrored, straight.flip(-1))
    assert straight.shape == (1, 8, 8)
    assert torch.allclose(straight[..., :3], torch.tensor(1.0), atol=0.02)
    assert torch.allclose(straight[..., 5:], torch.tensor(0.25), atol=0.02)


def test_the_mask_is_cropped_like_its_image(family, images, masks):
    half((60, 40)).save(masks / "1.png")
    crops = weights(family, *examples(images, mask_data_dir=masks, unmasked_weight=0.0))[1]
    middle, left, right = (crop.mean().item() for crop in crops)
    assert middle == pytest.approx(0.5, abs=0.02)
    assert (left, right) == (pytest.approx(0.75, abs=0.02), pytest.approx(0.25, abs=0.02))


def test_transparency_may_be_the_mask_and_a_mask_file_overrides_it(family, images, masks):
    image = Image.open(images / "0.png").convert("RGB")
    image.putalpha(half())
    image.save(images / "0.png")
    (first,) = weights(family, *examples(images, alpha_mask=True, unmasked_weight=0.0))[0]
    assert first.mean().item() == pytest.approx(0.5, abs=0.02)
    Image.new("L", (20, 20), 255).save(masks / "0.png")
    with_file = examples(images, alpha_mask=True, mask_data_dir=masks, unmasked_weight=0.0)
    assert (weights(family, *with_file)[0] == 1).all()
    assert weights(family, *examples(images)) == [None] * 4


def test_images_without_a_mask_are_reported(images, masks, caplog):
    half().save(masks / "0.png")
    examples(images, mask_data_dir=masks)
    assert f"Images of {images} have no mask, so all of their pixels count fully: 1.jpg, 2.webp, 3.png." in caplog.text


def test_a_changed_mask_changes_the_examples_digest(images, masks):
    half().save(masks / "0.png")
    before = [example.digest for example in examples(images, mask_data_dir=masks)[0]]
    half().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(masks / "0.png")
    after = [example.digest for example in examples(images, mask_data_dir=masks)[0]]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True, True]


def test_masks_of_several_subjects_are_in_sub_folders_of_the_same_names(images, masks, tmp_path):
    (tmp_path / "both").mkdir()
    images.rename(tmp_path / "both" / "dog")
    (masks / "dog").mkdir()
    half().save(masks / "dog" / "0.png")
    config = with_values(DreamBoothConfig(), {"instance_data_dir": tmp_path / "both", "mask_data_dir": masks})
    (subject,) = find_subjects(config)
    assert [example.mask for example in read_examples(subject, config.data)] == [masks / "dog" / "0.png", *[None] * 3]
    shutil.rmtree(masks / "dog")
    assert [example.mask for example in read_examples(subject, config.data)] == [None] * 4


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (half((60, 40)), r"0\.png has 60×40 pixels and its image 40×40: give both one shape"),
        (Image.new("L", (40, 40), 0), r"0\.png is black, so its image has no weight"),
        (None, r"0\.png is no image"),
    ],
)
def test_an_unusable_mask_is_refused_by_name(images, masks, mask, complaint):
    mask.save(masks / "0.png") if mask else (masks / "0.png").write_text("")
    with pytest.raises(ImageError, match=complaint):
        examples(images, mask_data_dir=masks)


def test_a_missing_folder_of_masks_is_reported(images):
    with pytest.raises(ImageError, match=r"--mask_data_dir is .*nix, which is no folder: correct the path"):
        examples(images, mask_data_dir=images / "nix")


def test_the_folder_of_images_is_refused_as_folder_of_masks(images):
    with pytest.raises(ImageError, match=r"which holds the images themselves.*--alpha_mask"):
        examples(images, mask_data_dir=images / ".." / images.name)


def losses(prediction, weights):
    """Return the loss of ``prediction`` for a target of zeros."""
    process = SimpleNamespace(add_noise=lambda *_: prediction, target=lambda *_: torch.zeros_like(prediction))
    loss = DenoisingLoss(lambda noisy, *_: noisy, process)
    return loss(prediction, prediction, torch.zeros(2), weights)[0]


def test_equal_weights_give_the_unweighted_mean():
    errors = torch.randn(2, 4, 6, 6)
    for value in (0.1, 1.0):
        weights = torch.full((2, 1, 6, 6), value)
        assert torch.allclose(losses(errors, weights), losses(errors, None))


def test_pixels_without_weight_do_not_count_and_the_others_count_as_a_whole_image():
    errors = torch.randn(2, 4, 6, 6)
    weights = torch.zeros(2, 1, 6, 6)
    weights[..., :2] = 1
    assert torch.allclose(losses(errors, weights), losses(errors[..., :2], None))
    errors[..., 2:] *= 100
    assert torch.allclose(losses(errors, weights), losses(errors[..., :2], None))
    assert (losses(errors, 0 * weights) == 0).all()
