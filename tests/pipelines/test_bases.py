"""The base model of an adapter: recorded by its run, found by every command, loaded in the run's precision."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from safetensors.torch import save_file

from hra_diffusion import AdapterFileError, ConfigError, export_lora, fit_lora, load_pipeline
from hra_diffusion.cli.main import main
from hra_diffusion.errors import ModelError
from hra_diffusion.formats.folders import RecordedBase, recorded_base
from hra_diffusion.formats.run_folder import BASE_FILE
from hra_diffusion.pipelines import load_hra_weights, prompt_options, save_hra_weights
from hra_diffusion.pipelines.bases import find_base, keep_vae_precision, load_base, move_or_offload
from hra_diffusion.pipelines.models import generate_image
from hra_diffusion.resources import recorded_path
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.models.base import read_base
from tests.accelerate_state import reset_accelerate
from tests.conftest import save_images
from tests.pipelines.test_single_files import original_tensors
from tests.versions import offloads_groups

CPU = torch.device("cpu")
SMALL = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0}


def train(*flags: str) -> None:
    """Train on the images in dog, into run; accelerate has one state a process, and runs differ in precision."""
    images = ["--instance_data_dir", "dog", "--num_validation_images", "1", "--num_inference_steps", "2"]
    reset_accelerate()
    try:
        assert main(["train", *flags, *images, "--max_train_steps", "2", "--output_dir", "run"]) == 0
    finally:
        reset_accelerate()


@pytest.fixture(scope="module")
def run_on_variant(tiny_sd, tmp_path_factory) -> Path:
    """A run on a folder with weights of the variant fp16 alone, named by a path relative to the working directory."""
    root = tmp_path_factory.mktemp("variant")
    load_pipeline(str(tiny_sd)).save_pretrained(root / "models" / "half", variant="fp16")
    save_images(root / "dog")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        flags = ["--pretrained_model_name_or_path", "models/half", "--variant", "fp16", "--revision", "v1"]
        flags += ["--clip_skip", "1", "--mixed_precision", "bf16"]
        train(*flags)
    return root / "run"


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """The arguments that reach diffusers' from_pretrained, which still loads the model."""
    recorded, load = [], DiffusionPipeline.from_pretrained.__func__

    def record(cls, name, **options):
        recorded.append({"name": name, **options})
        return load(cls, name, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(record))
    return recorded


def test_a_run_records_its_base_with_an_absolute_path(run_on_variant):
    base = recorded_base(run_on_variant)
    assert base.name == str(run_on_variant.parent / "models" / "half")
    assert (base.options["variant"], base.options["revision"]) == ("fp16", "v1")
    assert recorded_base(run_on_variant / "adapter") == base
    assert f'instance_data_dir = "{run_on_variant.parent / "dog"}"' in (run_on_variant / "config.toml").read_text()


def test_an_adapter_copied_without_its_run_keeps_its_base(run_on_variant, tmp_path, monkeypatch):
    base = recorded_base(run_on_variant)
    checkpoint = run_on_variant / "checkpoint-2" / "adapter"
    for number, folder in enumerate((run_on_variant / "adapter", checkpoint)):
        copy = shutil.copytree(folder, tmp_path / f"copy {number}")
        assert recorded_base(copy) == base
        assert (base.options["variant"], base.options["clip_skip"], base.mixed_precision) == ("fp16", 1, "bf16")
        assert main(["generate", "--adapter", str(copy), "--prompt", "a dog", "--output_dir", str(tmp_path)]) == 0
    pipe = DiffusionPipeline.from_pretrained(base.name, variant="fp16", use_safetensors=True)
    monkeypatch.chdir(tmp_path)
    PeftModel.from_pretrained(pipe.unet, "copy 0/unet")


def test_every_writer_of_adapters_records_the_base(run_on_variant, tmp_path, monkeypatch):
    base = recorded_base(run_on_variant)
    pipe = load_base(base, device=CPU)
    load_hra_weights(pipe, run_on_variant)
    save_hra_weights(pipe, tmp_path / "saved")
    export_lora(run_on_variant, tmp_path / "lora.safetensors")
    fit_lora(tmp_path / "lora.safetensors", tmp_path / "fitted", base=base.name, base_options=base.options)
    Library(tmp_path / "library").add(tmp_path / "saved", "dog")
    for folder in ("saved", "fitted", "library/dog"):
        found = recorded_base(tmp_path / folder)
        assert (found.name, found.options["variant"], found.options["clip_skip"]) == (base.name, "fp16", 1)
    plain = DiffusionPipeline.from_pretrained(base.name, variant="fp16", use_safetensors=True)
    load_hra_weights(plain, run_on_variant)
    save_hra_weights(plain, tmp_path / "saved")  # the record of another pipeline would be wrong
    assert not recorded_base(tmp_path / "saved").options["variant"]
    save_hra_weights(plain, tmp_path / "new")  # default settings need no record
    assert not (tmp_path / "new" / BASE_FILE).exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"variant": 3}, "variant = 3, which should be of the type str"),
        ({"clip_skip": "1"}, "clip_skip = '1', which should be of the type int"),
        ({"mixed_precision": "fp8"}, "mixed_precision = 'fp8', which should be no, fp16 or bf16"),
    ],
)
def test_a_damaged_record_is_refused(subject_folder, tmp_path, record, message):
    copy = shutil.copytree(subject_folder, tmp_path / "copy")
    (copy / BASE_FILE).write_text(json.dumps(record))
    with pytest.raises(AdapterFileError, match=message):
        recorded_base(copy)


def test_the_configuration_of_a_single_file_is_recorded(tiny_sd, tmp_path, monkeypatch):
    pipe = load_pipeline(str(tiny_sd))
    save_file(original_tensors(pipe), tmp_path / "sd.safetensors")
    save_images(tmp_path / "dog")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_sd, "config")
    flags = ["--pretrained_model_name_or_path", "sd.safetensors", "--pretrained_config_name_or_path", "config"]
    train(*flags)
    assert read_base("sd.safetensors", {"config": "config"}).size == 32
    monkeypatch.chdir(shutil.copytree("run/adapter", tmp_path / "elsewhere" / "copy"))
    assert recorded_base(".").options["config"] == str(tmp_path / "config")
    assert main(["generate", "--adapter", ".", "--prompt", "a dog"]) == 0
    with pytest.raises(ConfigError, match="--pretrained_config_name_or_path is for a model in a single file"):
        load_pipeline(str(tiny_sd), config="config")


def test_a_missing_relative_path_is_reported_with_the_folder_it_was_relative_to(tiny_sd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = re.escape(f"(relative to {tmp_path})")
    with pytest.raises(ModelError, match=f"'models/sd' is no model folder {place} and no model of the hub"):
        load_pipeline("models/sd")
    with pytest.raises(ModelError, match=f"The model './vae' {place} cannot be loaded"):
        load_pipeline(str(tiny_sd), vae="./vae")
    with pytest.raises(AdapterFileError, match=f"There is no adapter in dog {place}"):
        find_base(["dog"])
    with pytest.raises(AdapterFileError, match=f"'outputs/dog' is no folder here {place}, and the hub"):
        find_base(["outputs/dog"])


def test_a_missing_variant_is_named(run_on_variant):
    with pytest.raises(ModelError, match="its weight files are of a variant: give --variant fp16"):
        load_pipeline(str(run_on_variant.parent / "models" / "half"))


def test_every_command_loads_the_recorded_base(run_on_variant, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = recorded_base(run_on_variant).name
    adapter, small = str(run_on_variant), ["--height", "32", "--width", "32"]
    assert main(["generate", "--adapter", adapter, "--prompt", "a dog", *small]) == 0
    assert main(["merge", base, "merged", "--adapters", adapter]) == 0
    assert main(["export-lora", adapter, "lora.safetensors"]) == 0
    flags = ["--pretrained_model_name_or_path", base, "--variant", "fp16", "--revision", "v1"]
    assert main(["import-lora", "lora.safetensors", "imported", *flags]) == 0
    loaded = [(call["name"], call["variant"], call["revision"]) for call in calls]
    assert loaded == [(base, "fp16", "v1")] * 4
    assert recorded_base("imported").options["revision"] == "v1"


def test_flags_override_the_recorded_base(run_on_variant, tiny_sd):
    base = find_base([run_on_variant], None, {"revision": "v2"})
    assert (base.options["revision"], base.options["variant"]) == ("v2", "fp16")
    other = find_base([run_on_variant], tiny_sd)  # another model has other revisions and variants
    assert (other.name, other.options) == (str(tiny_sd), {"clip_skip": 1})


def test_adapters_with_different_bases_are_refused_together(run_on_variant, tmp_path):
    other = shutil.copytree(run_on_variant, tmp_path / "other")
    text = (other / "config.toml").read_text()
    (other / "config.toml").write_text(text.replace('variant = "fp16"', 'variant = "bf16"'))
    with pytest.raises(ConfigError, match=r"different --variant \(fp16 for .*, bf16 for"):
        find_base([run_on_variant, other])
    assert find_base([run_on_variant, other], None, {"variant": "fp16"}).options["variant"] == "fp16"


def test_an_adapter_without_a_base_is_refused(subject_folder, tmp_path):
    copy = shutil.copytree(subject_folder, tmp_path / "copy")
    path = copy / "unet" / "adapter_config.json"
    path.write_text(path.read_text().replace('"base_model_name_or_path"', '"peft_version"'))
    with pytest.raises(ModelError, match="copy does not name its base model: add --pretrained_model_name_or_path"):
        find_base([copy])


def test_recorded_paths_are_absolute_except_for_hub_names_and_the_projects_data(tmp_path, monkeypatch):
    (tmp_path / "sd").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recorded_path("sd") == str(tmp_path / "sd")
    assert recorded_path("runwayml/sd") == "runwayml/sd"
    monkeypatch.chdir(Path(__file__).parents[2])
    assert recorded_path("assets/emoji-sd") == "assets/emoji-sd"


def test_a_model_follows_the_run_s_precision_on_a_gpu_and_dtype_everywhere(tiny_sd):
    base = RecordedBase(name=str(tiny_sd), mixed_precision="bf16")
    meta = torch.device("meta")  # stands for a GPU: weights are not computed with
    assert load_base(base, device=meta).unet.dtype == torch.bfloat16
    assert load_base(base, device=CPU).unet.dtype == torch.float32
    pipe = load_base(base, device=CPU, dtype="bf16", vae_tiling=True, vae_slicing=True)
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing
    assert generate_image(pipe, "a dog", 0, **SMALL).size == (32, 32)


def test_a_half_precision_pipeline_edits_images_with_a_float32_autoencoder(tiny_sd):
    from diffusers import AutoPipelineForImage2Image

    pipe = load_base(RecordedBase(name=str(tiny_sd)), device=CPU, dtype="bf16")
    image = generate_image(pipe, "a dog", 0, **SMALL)
    edited = AutoPipelineForImage2Image.from_pipe(pipe)
    options = {"image": image, "strength": 0.9, "num_inference_steps": 3}
    assert generate_image(edited, "a cat", 0, **options).size == (32, 32)


@pytest.mark.parametrize("offload", ["model", pytest.param("group", marks=offloads_groups)])
def test_offloading_changes_no_image(tiny_sd, offload):
    whole, offloaded = load_pipeline(str(tiny_sd)), load_pipeline(str(tiny_sd))
    for pipe in (whole, offloaded):
        keep_vae_precision(pipe.vae)
    expected = generate_image(whole, "a dog", 0, **SMALL)
    assert generate_image(move_or_offload(offloaded, CPU, offload), "a dog", 0, **SMALL).tobytes() == expected.tobytes()


@pytest.fixture
def loaded_at_once(monkeypatch) -> list[int]:
    """Let accelerate's hooks load layers onto the CPU as onto a GPU; record the loaded weights of each loading.

    Accelerate itself puts a tensor that is on the CPU already into the module, which wants a parameter.
    """
    loaded, counts = set(), []

    def place(module, name, device, value=None, **_):
        holder, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        tensor = (getattr(holder, leaf) if value is None else value).detach().to(device)
        if leaf not in holder._parameters:
            holder._buffers[leaf] = tensor
            return
        holder._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        (loaded.discard if tensor.is_meta else loaded.add)((id(holder), leaf))
        counts.append(len(loaded))

    monkeypatch.setattr("accelerate.hooks.set_module_tensor_to_device", place)
    return counts


def test_sequential_offloading_changes_no_image_and_loads_one_layer_at_a_time(tiny_sd, run_on_variant, loaded_at_once):
    images = []
    for offload in ("none", "sequential"):
        pipe = load_pipeline(str(tiny_sd))
        keep_vae_precision(pipe.vae)
        load_hra_weights(pipe, run_on_variant)
        move_or_offload(pipe, CPU, offload)
        loaded_at_once.clear()
        for prompt in ("a dog", "a (red:1.3) dog, " * 6):
            images.append(generate_image(pipe, seed=0, **prompt_options(pipe, prompt), **SMALL))
    assert images[0].tobytes() == images[2].tobytes() and images[1].tobytes() == images[3].tobytes()
    parameters = sum(len(list(getattr(pipe, name).parameters())) for name in ("unet", "vae", "text_encoder"))
    assert 0 < max(loaded_at_once) < parameters / 10
    assert {weight.device.type for weight in pipe.unet.parameters()} == {"meta"}


def test_offloading_is_refused_on_a_cpu_before_the_model_is_loaded(run_on_variant, calls, capsys):
    for offload in ("model", "sequential", "group"):
        flags = ["--adapter", str(run_on_variant), "--prompt", "a dog", "--offload", offload]
        assert main(["generate", *flags]) == 2
        assert f"--offload is {offload}, but the models run on the CPU" in capsys.readouterr().err
    assert calls == []
