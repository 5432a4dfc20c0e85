"""Merged models: diffusers alone generates the images of the pipeline with adapters."""

import resource
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline

from hra_diffusion import HRAConfig, HRAModel, load_hra_weights, load_pipeline, merge_hra, set_hra_adapters
from hra_diffusion.cli.main import main
from hra_diffusion.cli.merge import adapter_and_strength
from hra_diffusion.errors import AdapterFileError, ConfigError, ModelError, OutputError
from tests.pipelines.test_single_files import save_real_size


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("combine", ["mean", "product"])
def test_the_command_merges_the_mixture_of_the_pipeline(
    pipe, adapters, tiny_sd, load, image, tmp_path, capsys, combine
):
    for name in ("a", "b"):
        load_hra_weights(pipe, adapters / name, name)
    set_hra_adapters(pipe, ["a", "b"], [0.8, 0.5], combine)
    output, mixed = tmp_path / "out", [f"{adapters / 'a'}:0.8", f"{adapters / 'b'}:0.5"]
    assert main(["merge", str(tiny_sd), str(output), "--adapters", *mixed, "--combine", combine]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert off(image(load(StableDiffusionPipeline, output)), image(pipe)) < 1e-4
    assert {path.name for path in output.iterdir()} == {path.name for path in tiny_sd.iterdir()}


def test_half_precision_is_rounded_once(adapters, tiny_sd, load, tmp_path):
    merge_hra({adapters / "a": 1.0}, tmp_path / "full", base=tiny_sd)
    merge_hra({str(adapters / "a"): 1.0}, tmp_path / "half", base=tiny_sd, dtype="fp16")
    full, half = (load(StableDiffusionPipeline, tmp_path / name).to(torch.float16) for name in ("full", "half"))
    expected = full.unet.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in half.unet.state_dict().items())


def test_a_merge_needs_no_gpu(adapters, tiny_sd, load, tmp_path, monkeypatch):
    merge_hra({adapters / "a": 1.0}, tmp_path / "cpu", base=tiny_sd)
    PartialState()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))  # a GPU that computes nothing
    merge_hra({adapters / "a": 1.0}, tmp_path / "gpu", base=tiny_sd)
    for path in (tmp_path / "cpu").rglob("*.safetensors"):
        assert (tmp_path / "gpu" / path.relative_to(tmp_path / "cpu")).read_bytes() == path.read_bytes()


MEASURE = """
import re, sys
from pathlib import Path
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from hra_diffusion import merge_hra

def status(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = status("VmRSS")
merge_hra({sys.argv[2]: 1.0}, sys.argv[3], base=sys.argv[1], dtype="fp16")
print((status("VmHWM") - before) / (2 * Path(sys.argv[1]).stat().st_size))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_a_merge_needs_about_one_and_a_half_times_the_model_in_float32(python, make_adapter, tmp_path):
    """Measured 1.49 times with all linear layers of UNet and text encoder adapted."""
    file = save_real_size(tmp_path, divisor=2)
    make_adapter(load_pipeline(str(file)), tmp_path / "adapter")
    result = python("-c", MEASURE, file, tmp_path / "adapter", tmp_path / "out")
    assert float(result.stdout.split()[-1]) <= 1.7, result.stderr


def test_fully_trained_modules_and_biases_are_merged_too(pipe, tiny_sd, load, image, tmp_path):
    model = HRAModel(pipe.unet, HRAConfig(target_modules=["to_q"], bias="all", modules_to_save=["conv_out"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    pipe.unet = model
    model.save_pretrained(tmp_path / "adapter" / "unet")
    merge_hra({tmp_path / "adapter": 1.0}, tmp_path / "out", base=tiny_sd)
    assert off(image(load(StableDiffusionPipeline, tmp_path / "out")), image(pipe)) < 1e-4


def test_an_impossible_merge_is_refused_and_nothing_is_written(adapters, tiny_sd, tmp_path):
    a = {str(adapters / "a"): 1.0}
    with pytest.raises(ConfigError, match="diffusers has no writer"):
        merge_hra(a, tmp_path / "out.safetensors", base=tiny_sd)
    with pytest.raises(ModelError, match="pickled"):
        merge_hra(a, tmp_path / "out", base=tmp_path / "sd15.ckpt")
    with pytest.raises(ConfigError, match="at least one adapter"):
        merge_hra({}, tmp_path / "out", base=tiny_sd)
    with pytest.raises(AdapterFileError, match="no adapter in"):
        merge_hra({tmp_path: 1.0}, tmp_path / "out", base=tiny_sd)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        merge_hra(a, tmp_path, base=tiny_sd)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_strength_follows_the_last_colon():
    assert adapter_and_strength("a:0.8") == ("a", 0.8)
    assert adapter_and_strength("a:-1") == ("a", -1.0)
    assert adapter_and_strength("some/a") == ("some/a", 1.0)
    assert adapter_and_strength("C:\\a") == ("C:\\a", 1.0)


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    (tmp_path / "a:1").mkdir()
    assert adapter_and_strength(f"{tmp_path}/a:1") == (f"{tmp_path}/a:1", 1.0)
    assert adapter_and_strength(f"{tmp_path}/a:1:0.5") == (f"{tmp_path}/a:1", 0.5)
    with pytest.raises(ConfigError, match=r"'half' is not a number: write FOLDER:STRENGTH"):
        adapter_and_strength(f"{tmp_path}/a:1:half")


def test_an_adapter_named_twice_is_refused(capsys, tmp_path):
    assert main(["merge", "base", str(tmp_path / "out"), "--adapters", "a:1", "a:2"]) == 2
    assert "names an adapter twice" in capsys.readouterr().err


def test_the_command_reads_the_words_of_version_0_1(adapters, tiny_sd, tmp_path):
    mixed = [f"{adapters / 'a'}:0.8", f"{adapters / 'b'}:0.5"]
    for combine in ("lie", "mean"):
        assert main(["merge", str(tiny_sd), str(tmp_path / combine), "--adapters", *mixed, "--combine", combine]) == 0
    files = [(tmp_path / combine / "unet" / "diffusion_pytorch_model.safetensors") for combine in ("lie", "mean")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_full_disk_leaves_nothing_and_the_next_merge_tidies_what_a_killed_one_left(adapters, tiny_sd, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*out .*existing files are intact"):
            merge_hra({adapters / "a": 1.0}, tmp_path / "out", base=tiny_sd)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    for name in ("out", "other"):
        (tmp_path / f".3fffff-0123abcd-new-{name}").mkdir()
    merge_hra({adapters / "a": 1.0}, tmp_path / "out", base=tiny_sd)
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".3fffff-0123abcd-new-other"}
