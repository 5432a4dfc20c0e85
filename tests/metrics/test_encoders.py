"""Encoders of transformers with random weights: unit vectors, safetensors only, errors with a remedy."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hra_diffusion.errors import ModelError
from hra_diffusion.metrics.encoders import CLIP, load_clip, load_dino
from hra_diffusion.metrics.lpips import load_lpips
from hra_diffusion.metrics.models import find_judge, load_judge, load_metric_models
from hra_diffusion.metrics.vocabulary import FILE, classify, read_vocabulary


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (40, 60), (64, 33)]
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory):
    """A ViT without a pooler, as facebook/dino-vits16 is stored."""
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_vectors_have_length_one_and_equal_images_equal_vectors(clip_folder, tiny_dino, images):
    for encoder in (load_clip(str(clip_folder)), load_dino(str(tiny_dino))):
        vectors = encoder.encode_images([*images, images[0]])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(vectors[0] @ vectors[-1], 1, atol=1e-6)
        assert vectors[0] @ vectors[1] < 1 - 1e-4


def test_vectors_equal_those_of_the_model(clip_folder, images):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = AutoImageProcessor.from_pretrained(clip_folder)(images=images, return_tensors="pt").pixel_values
    words = AutoTokenizer.from_pretrained(clip_folder)(["a cat", "a blue dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **words)
    clip = load_clip(str(clip_folder))
    np.testing.assert_allclose(clip.encode_images(images), expected.image_embeds, atol=1e-6)
    np.testing.assert_allclose(clip.encode_texts(["a cat", "a blue dog"]), expected.text_embeds, atol=1e-6)


def test_images_are_encoded_in_batches_and_long_texts_truncated(clip_folder, images):
    clip = load_clip(str(clip_folder))
    np.testing.assert_allclose(clip.encode_images(images * 12)[-3:], clip.encode_images(images), atol=1e-6)
    assert clip.encode_texts(["word " * 500]).shape == (1, 16)


def test_a_model_stored_in_half_precision_computes_in_float32(clip_folder, tmp_path, images):
    shutil.copytree(clip_folder, tmp_path / "half")
    tensors = load_file(clip_folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "half" / "model.safetensors")
    clip = load_clip(str(tmp_path / "half"))
    assert clip.model.dtype == torch.float32
    np.testing.assert_allclose(clip.encode_images(images), load_clip(str(clip_folder)).encode_images(images), atol=1e-2)


def test_under_autocast_encoders_compute_in_float32(clip_folder, images):
    clip = load_clip(str(clip_folder))
    expected = clip.encode_images(images), clip.encode_texts(["a dog"])
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(clip.encode_images(images), expected[0])
        assert np.array_equal(clip.encode_texts(["a dog"]), expected[1])


def test_the_label_has_the_nearest_caption(clip_folder):
    clip = load_clip(str(clip_folder))
    captions = {"red": "on a red background", "beach": "on the beach", "night": "at night"}
    as_images = clip.encode_texts([captions["night"], captions["red"]])
    assert classify(clip, as_images, captions) == ["night", "red"]


def test_the_judge_of_a_base_is_beside_it(tmp_path, tiny_judge):
    assert find_judge(tmp_path / "emoji-sd") == tmp_path.resolve() / "emoji-clip"
    assert find_judge("stable-diffusion-v1-5/stable-diffusion-v1-5") is None
    shutil.copytree(tiny_judge, tmp_path / "emoji-clip")
    models = load_metric_models(str(tmp_path / "emoji-sd"))
    assert models.clip.name == "emoji-clip"
    assert models.vocabulary == read_vocabulary(tiny_judge)
    assert [note.split()[0] for note in models.notes] == ["DINO", "Diversity"]


def test_a_missing_judge_names_its_remedies(tmp_path):
    with pytest.raises(ModelError, match=r"no judge in .*emoji-clip.*python -m emoji_world judge.*--clip"):
        load_metric_models(str(tmp_path / "emoji-sd"))


def test_a_judge_without_weights_or_with_a_damaged_vocabulary_is_refused(tmp_path, tiny_judge):
    shutil.copytree(tiny_judge, tmp_path / "judge")
    (tmp_path / "judge" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot be loaded.*model\.safetensors"):
        load_judge(tmp_path / "judge")
    (tmp_path / "judge" / FILE).write_text('{"labels": {}}')
    with pytest.raises(ModelError, match=r"judge\.json must hold attributes, contexts and unrelated"):
        load_judge(tmp_path / "judge")


def test_pickled_weights_are_refused(tmp_path, clip_folder):
    shutil.copytree(clip_folder, tmp_path / "pickled")
    torch.save(load_file(clip_folder / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pickled.*model\.safetensors"):
        load_clip(str(tmp_path / "pickled"))


def test_missing_weights_are_refused_and_not_filled_with_random_numbers(tmp_path, clip_folder, tiny_dino):
    with pytest.raises(ModelError):
        load_clip(str(tiny_dino))
    shutil.copytree(clip_folder, tmp_path / "partial")
    tensors = load_file(clip_folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "partial" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete: it lacks visual_projection\.weight"):
        load_clip(str(tmp_path / "partial"))


def test_named_models_must_load_and_default_ones_are_replaced_by_a_note(clip_folder, tiny_dino):
    with pytest.raises(ModelError, match=f"{CLIP}.*network"):
        load_metric_models("some/model")
    with pytest.raises(ModelError, match=r"some/dino.*network"):
        load_metric_models("some/model", clip=str(clip_folder), dino="some/dino")
    models = load_metric_models("some/model", clip=str(clip_folder))
    assert models.dino is None
    assert models.lpips is None
    assert "facebook/dino-vits16 is not measured" in models.notes[0]
    assert "distance in tiny-clip between images of a prompt, not LPIPS" in models.notes[1]
    assert load_metric_models("some/model", clip=str(clip_folder), dino=str(tiny_dino)).dino is not None


def test_lpips_names_its_missing_dependency():
    with pytest.raises(ModelError, match="LPIPS needs"):
        load_lpips(local_files_only=True)
