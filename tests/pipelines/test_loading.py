"""Loading and unloading of adapters: unloading restores the objects, and all components change or none."""

import shutil
import zipfile

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from hra_diffusion import HRAConfig, HRAModel, list_hra_adapters, save_hra_weights, set_hra_adapters
from hra_diffusion.errors import AdapterFileError, ConfigError, OutputError
from hra_diffusion.formats.peft import CONFIG_FILE, WEIGHTS_FILE
from hra_diffusion.pipelines import (
    adapted_components,
    base_model,
    disable_hra,
    generate_image,
    load_hra_weights,
    load_pipeline,
    unload_hra_weights,
)

PROMPT = "a photo of a sks dog"
OPTIONS = {"num_inference_steps": 2, "output_type": "np"}


def same(one, other) -> bool:
    return bool((one == other).all())


def close(one, other, tolerance: float = 1e-5) -> bool:
    return torch.allclose(one, other, rtol=0, atol=tolerance)


def test_a_run_s_own_adapter_is_not_hidden(pipe, adapters, tmp_path):
    shutil.copytree(adapters / "a", tmp_path / "run" / "adapter")
    load_hra_weights(pipe, tmp_path / "run")
    with pytest.raises(OutputError, match=r"is a run's, whose own adapter would be hidden"):
        save_hra_weights(pipe, tmp_path / "run")


def test_an_adapter_changes_the_image_and_unloading_restores_the_base(pipe, trained):
    components, before = dict(pipe.components), generate_image(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, trained / "adapter")
    assert list(adapted_components(pipe)) == ["text_encoder", "unet"]
    assert not same(generate_image(pipe, PROMPT, 0, **OPTIONS), before)
    unload_hra_weights(pipe)
    assert all(pipe.components[name] is component for name, component in components.items())
    assert same(generate_image(pipe, PROMPT, 0, **OPTIONS), before)


def test_a_disabled_pipeline_is_its_base_within_the_block_only(pipe, trained):
    before = generate_image(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, trained)
    adapted = generate_image(pipe, PROMPT, 0, **OPTIONS)
    with disable_hra(pipe):
        assert same(generate_image(pipe, PROMPT, 0, **OPTIONS), before)
    assert same(generate_image(pipe, PROMPT, 0, **OPTIONS), adapted)


def test_the_same_seed_gives_the_same_image_after_any_other_images(pipe):
    first = generate_image(pipe, PROMPT, 7, **OPTIONS)
    torch.rand(5)
    generate_image(pipe, PROMPT, 8, **OPTIONS)
    assert same(generate_image(pipe, PROMPT, 7, **OPTIONS), first)
    assert not same(generate_image(pipe, PROMPT, 8, **OPTIONS), first)


@pytest.mark.parametrize("damage", ["truncated", "missing", "other model"])
def test_a_damaged_component_leaves_the_pipeline_unchanged(pipe, trained, tmp_path, damage):
    copy = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    weights = copy / "unet" / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "missing":
        weights.unlink()
    else:
        shutil.copy(copy / "text_encoder" / weights.name, weights)
    components = dict(pipe.components)
    with pytest.raises(AdapterFileError):
        load_hra_weights(pipe, copy)
    assert all(pipe.components[name] is component for name, component in components.items())
    assert not [name for name, _ in pipe.text_encoder.named_parameters() if "hra" in name]


def test_an_adapter_for_a_missing_component_is_refused(pipe, trained, tmp_path):
    copy = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    (copy / "unet").rename(copy / "transformer")
    with pytest.raises(AdapterFileError, match="the StableDiffusionPipeline has no transformer"):
        load_hra_weights(pipe, copy)
    assert adapted_components(pipe) == {}


def test_every_kind_of_pipeline_loads_and_unloads_an_adapter(tiny_sd, adapters, kind, image):
    make, options = kind
    pipe = make(tiny_sd)
    components, base = dict(pipe.components), image(pipe, **options)
    load_hra_weights(pipe, adapters / "a")
    assert not close(image(pipe, **options), base, 1e-3)
    unload_hra_weights(pipe)
    assert all(pipe.components[name] is component for name, component in components.items())
    assert torch.equal(image(pipe, **options), base)


def test_stable_diffusion_xl_loads_an_adapter_of_all_three_components(tiny_sdxl, xl_adapter, tmp_path, image, load):
    pipe = load(StableDiffusionXLPipeline, tiny_sdxl)
    base = image(pipe)
    load_hra_weights(pipe, xl_adapter)
    assert list_hra_adapters(pipe)["default"].components == ("text_encoder", "text_encoder_2", "unet")
    adapted = image(pipe)
    assert not close(adapted, base, 1e-3)
    save_hra_weights(pipe, tmp_path / "again")
    unload_hra_weights(pipe)
    load_hra_weights(pipe, tmp_path / "again")
    assert close(image(pipe), adapted)


def test_an_adapter_of_stable_diffusion_xl_is_refused_by_1_5_with_the_name_of_its_base(pipe, xl_adapter, tiny_sdxl):
    with pytest.raises(AdapterFileError, match=f"made for {tiny_sdxl}, does not fit|has no text_encoder_2"):
        load_hra_weights(pipe, xl_adapter)
    assert adapted_components(pipe) == {}


def test_the_newest_adapter_is_active_alone_and_unloading_it_activates_the_first(pipe, adapters, image):
    load_hra_weights(pipe, adapters / "a", "a")
    only_a = image(pipe)
    load_hra_weights(pipe, adapters / "b", "b")
    both = list_hra_adapters(pipe)
    assert [(name, adapter.active) for name, adapter in both.items()] == [("a", False), ("b", True)]
    assert both["b"].components == ("unet",)
    text_encoder = pipe.text_encoder
    unload_hra_weights(pipe, "b")
    assert torch.equal(image(pipe), only_a)
    assert pipe.text_encoder is text_encoder
    with pytest.raises(ConfigError, match="no HRA adapter named 'b'; known are a"):
        unload_hra_weights(pipe, "b")


@pytest.mark.parametrize("name", ["a", "../a", "a/b", "a\0", "a.b", ""])
def test_a_taken_or_invalid_name_is_refused(pipe, adapters, name, image):
    load_hra_weights(pipe, adapters / "a", "a")
    before = image(pipe)
    with pytest.raises(ConfigError, match=r"named 'a' already|cannot name an adapter"):
        load_hra_weights(pipe, adapters / "b", name)
    assert list(list_hra_adapters(pipe)) == ["a"]
    assert torch.equal(image(pipe), before)


def test_an_archive_is_refused_and_never_unpacked(pipe, tmp_path, image):
    before = image(pipe)
    with zipfile.ZipFile(tmp_path / "adapter.zip", "w") as archive:
        archive.writestr("../outside.safetensors", b"")
    with pytest.raises(AdapterFileError, match=r"adapter\.zip"):
        load_hra_weights(pipe, tmp_path / "adapter.zip")
    assert torch.equal(image(pipe), before)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.zip"]


def test_a_damaged_second_adapter_leaves_the_first_active_and_unchanged(pipe, adapters, tmp_path, image):
    load_hra_weights(pipe, adapters / "a", "a")
    set_hra_adapters(pipe, "a", 0.6)
    before = image(pipe)
    copy = shutil.copytree(adapters / "low", tmp_path / "low")
    (copy / "unet" / "adapter_model.safetensors").write_bytes(b"PK")
    with pytest.raises(AdapterFileError, match="no intact safetensors"):
        load_hra_weights(pipe, copy, "low")
    assert torch.equal(image(pipe), before)
    assert list(list_hra_adapters(pipe)) == ["a"]


def test_swapping_writes_over_the_columns_of_an_adapter_in_place(pipe, adapters, image):
    load_hra_weights(pipe, adapters / "low", "low")
    expected = image(pipe)
    unload_hra_weights(pipe)
    load_hra_weights(pipe, adapters / "a", max_rank=6)
    layers = adapted_components(pipe)["unet"].adapted_layers()
    addresses = [layer.hra_u["default"].data_ptr() for layer in layers.values()]
    a = image(pipe)
    load_hra_weights(pipe, adapters / "low", hotswap=True)
    assert close(image(pipe), expected)
    load_hra_weights(pipe, adapters / "b", hotswap=True)  # it has no text encoder: that goes back to the base
    b = image(pipe)
    load_hra_weights(pipe, adapters / "a", hotswap=True)
    assert close(image(pipe), a)
    assert [layer.hra_u["default"].data_ptr() for layer in layers.values()] == addresses
    unload_hra_weights(pipe)
    load_hra_weights(pipe, adapters / "b")
    assert close(image(pipe), b)


def test_a_failed_swap_changes_no_component(pipe, adapters, tmp_path, image):
    load_hra_weights(pipe, adapters / "low")
    before = image(pipe)
    with pytest.raises(AdapterFileError, match="its rank is 4 of at most 2"):
        load_hra_weights(pipe, adapters / "a", hotswap=True)
    copy = shutil.copytree(adapters / "low", tmp_path / "low")
    (copy / "unet" / "adapter_model.safetensors").unlink()
    shutil.copytree(adapters / "low" / "text_encoder", copy / "text_encoder", dirs_exist_ok=True)
    with pytest.raises(AdapterFileError, match="Cannot read"):
        load_hra_weights(pipe, copy, hotswap=True)
    assert torch.equal(image(pipe), before)
    with pytest.raises(ConfigError, match="no HRA adapter named 'other'"):
        load_hra_weights(pipe, adapters / "low", "other", hotswap=True)


def test_peft_files_in_the_folder_itself_are_loaded_into_the_matching_component(pipe, adapters):
    for component in ("unet", "text_encoder"):
        load_hra_weights(pipe, adapters / "a" / component)
        assert list_hra_adapters(pipe)["default"].components == (component,)
        unload_hra_weights(pipe)


def test_an_adapter_is_loaded_from_a_repository_of_the_hub(pipe, adapters, tmp_path, image):
    """The layout of huggingface_hub's cache, offline, as it is after a download."""
    commit, repository = "0" * 40, tmp_path / "models--someone--cats"
    shutil.copytree(adapters / "a", repository / "snapshots" / commit / "tabby")
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    load_hra_weights(pipe, adapters / "a", "local")
    expected = image(pipe)
    load_hra_weights(pipe, "someone/cats", subfolder="tabby", revision="v1", cache_dir=tmp_path)
    assert torch.equal(image(pipe), expected)
    with pytest.raises(AdapterFileError, match=r"'someone/dogs' is no folder here \(relative to .*, and the hub"):
        load_hra_weights(pipe, "someone/dogs", "dogs", cache_dir=tmp_path)


def test_saving_writes_all_components_or_nothing_and_never_mixes_two_adapters(pipe, adapters, tmp_path):
    load_hra_weights(pipe, adapters / "a", "a")
    load_hra_weights(pipe, adapters / "b", "b")
    with pytest.raises(ConfigError, match="Name the adapter to save; there are: a, b"):
        save_hra_weights(pipe, tmp_path)
    save_hra_weights(pipe, tmp_path, "a")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path).as_posix() for path in files} == {
        f"{component}/{name}" for component in ("unet", "text_encoder") for name in (CONFIG_FILE, WEIGHTS_FILE)
    }
    with pytest.raises(OutputError, match="holds an adapter of text_encoder already"):
        save_hra_weights(pipe, tmp_path, "b")
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "tokens" / "text_encoder").mkdir(parents=True)
    (tmp_path / "tokens" / "text_encoder" / "sks.safetensors").touch()
    with pytest.raises(OutputError, match=r"an adapter of tokens/text_encoder/sks\.safetensors already"):
        save_hra_weights(pipe, tmp_path, "a")
    (tmp_path / "control" / "condition_encoder").mkdir(parents=True)
    with pytest.raises(OutputError, match="an adapter of condition_encoder already"):
        save_hra_weights(pipe, tmp_path / "control", "a")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        save_hra_weights(pipe, tmp_path / "file", "a")


def test_a_folder_without_an_adapter_is_refused_with_the_expected_files(pipe, tmp_path):
    with pytest.raises(AdapterFileError, match=r"no adapter in .*one sub-folder for each adapted component"):
        load_hra_weights(pipe, tmp_path)


def test_a_model_stored_in_half_precision_generates_in_float32(make_model, tmp_path):
    pipe = load_pipeline(str(make_model(tmp_path / "half", half=True)))
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {torch.float32}
    assert generate_image(pipe, PROMPT, 0, **OPTIONS).shape == (32, 32, 3)


def test_an_adapter_knows_its_base_model(trained, tiny_sd, tmp_path):
    assert base_model(trained) == base_model(trained / "adapter") == str(tiny_sd)
    pipe = load_pipeline(str(tiny_sd))
    pipe.text_encoder = HRAModel(pipe.text_encoder, HRAConfig(r=2, target_modules=["q_proj"]))
    assert base_model(save_hra_weights(pipe, tmp_path / "own")) == str(tiny_sd)
