"""The disk cache: cached tensors equal computed ones bit for bit, and changed inputs are computed again."""

import logging

import pytest
import torch
from PIL import Image

from hra_diffusion.errors import ImageError, OutputError
from hra_diffusion.training.config import DataConfig, ModelConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.data.sources import SourceEncoder
from hra_diffusion.training.data.subjects import Subject, read_examples
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.families import load
from hra_diffusion.training.prepare import prepare_run
from tests.accelerate_state import reset_accelerate


class Counting:
    """Computes tensors, and counts its calls."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"x": torch.arange(6.0).view(2, 3).T, "y": torch.tensor(1.0)}


def fetch(cache, compute, *key):
    fetched = cache.fetch("things", key, compute)
    assert all(torch.equal(fetched[name], tensor) for name, tensor in Counting()().items())
    return compute.times


def test_without_a_folder_everything_is_computed_again():
    compute = Counting()
    assert [fetch(Cache(), compute, "a") for _ in range(2)] == [1, 2]


def test_with_a_folder_tensors_are_computed_once_a_key(tmp_path):
    compute = Counting()
    for _ in range(2):
        assert fetch(Cache(tmp_path), compute, "a", 1) == 1
    for times, key in enumerate([("a", 2), ("a", "1"), ("a1",), ("a", (1,))], 2):
        assert fetch(Cache(tmp_path), compute, *key) == times
    assert {path.suffix for path in (tmp_path / "things").iterdir()} == {".safetensors"}


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_computed_again(tmp_path, caplog, damage):
    compute = Counting()
    fetch(Cache(tmp_path), compute, "a")
    (path,) = (tmp_path / "things").iterdir()
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert fetch(Cache(tmp_path), compute, "a") == 2
    assert path.name in caplog.text
    assert fetch(Cache(tmp_path), compute, "a") == 2


def test_an_unwritable_cache_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        fetch(Cache(tmp_path / "file"), Counting(), "a")


def test_a_models_fingerprint_depends_on_its_weights_and_config(tiny_sd, make_model, tmp_path):
    def fingerprints(folder):
        pipe = load(ModelConfig(pretrained_model_name_or_path=str(folder))).pipe
        return [Cache(tmp_path).fingerprint(part) for part in (pipe.vae, pipe.text_encoder)], pipe.vae

    first, vae = fingerprints(tiny_sd)
    assert fingerprints(make_model(tmp_path / "elsewhere"))[0] == first
    others, _ = fingerprints(make_model(tmp_path / "other", seed=1))
    assert all(one != other for one, other in zip(first, others, strict=True))
    *_, last = vae.parameters()
    with torch.no_grad():
        last[-1] += 1e-3
    assert Cache(tmp_path).fingerprint(vae) != first[0]
    assert Cache().fingerprint(vae) == ""


@pytest.fixture
def encoded(tiny_sd, images, tmp_path):
    """Return a function that encodes a folder of images with a cache and counts the encoded images."""
    family = load(ModelConfig(pretrained_model_name_or_path=str(tiny_sd)))
    encode, calls = family.pipe.vae.encode, []
    family.pipe.vae.encode = lambda pixels: calls.append(len(pixels)) or encode(pixels)

    def encode_folder(size=(32, 32), seed=0, between=None, **settings):
        data = DataConfig(instance_data_dir=images, **settings)
        subject = Subject(folder=images, prompt="a sks dog", class_prompt=None)
        examples = [(example, size) for example in read_examples(subject, data)]
        if between:
            between()
        results = []
        for cache in (Cache(tmp_path / "cache"), Cache()):
            calls.clear()
            source_encoder = SourceEncoder(
                family=family, device=torch.device("cpu"), data=data, text_encoder_trains=False, seed=seed, cache=cache
            )
            results.append((source_encoder.encode("instance", examples), len(calls)))
        (source, times), (fresh, _) = results
        for one, other in zip(source.latents, fresh.latents, strict=True):
            assert torch.equal(one.mean, other.mean)
            assert torch.equal(one.std, other.std)
        return times

    return encode_folder


def test_images_are_encoded_again_only_if_an_input_of_theirs_changed(encoded, images, tmp_path):
    assert [encoded(), encoded()] == [4, 0]
    Image.new("RGB", (40, 40), "red").save(images / "0.png")
    assert [encoded(), encoded()] == [1, 0]
    (images / "1.jpg").rename(images / "renamed.jpg")
    (images / "0.txt").write_text("a red square")
    assert encoded() == 0
    assert [encoded(size=(24, 40)), encoded(size=(24, 40))] == [4, 0]
    assert encoded(background_color="black") == 4
    assert encoded(random_flip=True) >= 4
    assert encoded(color_jitter=0.1) >= 4
    assert encoded(color_jitter=0.2) >= 4
    assert encoded(color_jitter=0.2, seed=1) >= 4
    assert encoded(seed=1) == 0
    assert encoded(center_crop=True) == 3  # one is a square


def test_an_image_that_changed_after_its_check_is_refused(encoded, images, tmp_path):
    def spoil():
        Image.new("RGB", (40, 40), "red").save(images / "0.png")

    with pytest.raises(ImageError, match=r"0\.png has changed since the run began"):
        encoded(between=spoil)
    assert not list(tmp_path.glob("cache/latents/*"))


def test_a_mask_does_not_change_the_key_of_an_encoded_image(encoded, tmp_path):
    encoded()
    (tmp_path / "masks").mkdir()
    Image.new("L", (20, 20), 255).save(tmp_path / "masks" / "0.png")
    assert encoded(mask_data_dir=tmp_path / "masks") == 0


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(config, **changes):
    reset_accelerate()
    run = prepare_run(DreamBooth(with_values(config, changes)))
    list(run.generate_class_images())
    list(run.steps())
    return files(run.save())


@pytest.mark.parametrize(
    ("model", "precision", "train_text_encoder"),
    [("tiny_sd", "no", False), ("tiny_sd", "no", True), ("tiny_sdxl", "bf16", False), ("tiny_sd3", "no", False)],
)
def test_a_run_with_a_cache_equals_the_run_without_one(request, config, tmp_path, model, precision, train_text_encoder):
    changes = {"train_text_encoder": train_text_encoder, "mixed_precision": precision}
    changes["pretrained_model_name_or_path"] = str(request.getfixturevalue(model))
    config = with_values(config, changes)
    plain = train(config)
    cache = tmp_path / "cache"
    assert train(config, output_dir=tmp_path / "first", cache_dir=cache) == plain
    kept = files(cache)
    assert {path.parts[0] for path in kept} == ({"latents"} if train_text_encoder else {"latents", "prompts"})
    assert train(config, output_dir=tmp_path / "second", cache_dir=cache) == plain
    assert files(cache) == kept


def test_a_changed_prompt_is_encoded_again(config, tmp_path):
    config = with_values(config, {"train_text_encoder": False})
    cache = tmp_path / "cache"
    train(config, cache_dir=cache)
    prompted = {"instance_prompt": "a zwx dog", "class_prompt": "a photo of a dog"}
    with_cache = train(config, cache_dir=cache, output_dir=tmp_path / "cached", **prompted)
    assert with_cache == train(config, output_dir=tmp_path / "plain", **prompted)


def test_an_unwritable_cache_is_refused_before_the_run_starts(config, images):
    with pytest.raises(OutputError, match="--cache_dir"):
        prepare_run(DreamBooth(with_values(config, {"cache_dir": images / "0.png"})))
