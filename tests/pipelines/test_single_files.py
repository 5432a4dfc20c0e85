"""Single-file checkpoints with the names of the original code, read by diffusers' converter, are bases, too."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from hra_diffusion import load_hra_weights, merge_hra
from hra_diffusion.cli.main import main
from hra_diffusion.errors import ModelError
from hra_diffusion.formats.lora.fusing import modules_by_name, swap_halves
from hra_diffusion.formats.original_names import original_names
from hra_diffusion.formats.original_transformers import original_names_of
from hra_diffusion.pipelines import generate_image, load_pipeline, pipeline_class
from hra_diffusion.pipelines.single_files import guess_config, read_header
from tests.models import make_tokenizer
from tests.versions import transformer_families

VAE_SIZES = (128, 256, 512, 512)
"""Channels of Stable Diffusion's autoencoder."""


def original_unet(unet) -> dict[str, torch.Tensor]:
    """A UNet's weights by the names of the original code."""
    names = original_names([name for name, _ in unet.named_modules()])
    tensors = {}
    for key, tensor in unet.state_dict().items():
        module, _, part = key.rpartition(".")
        if module not in names:  # within a transformer
            deepest = max((name for name in names if module.startswith(f"{name}.")), key=len)
            names[module] = names[deepest] + module.removeprefix(deepest)
        tensors[f"model.diffusion_model.{names[module]}.{part}"] = tensor
    return tensors


def original_vae(vae) -> dict[str, torch.Tensor]:
    """An autoencoder's weights by the names of the original code, whose attention consists of 1 × 1 convolutions."""
    last = len(vae.config.block_out_channels) - 1
    rules = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda match: f"up.{last - int(match[1])}.block.{match[2]}"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
        (r"mid_block\.attentions\.0\.(to_)?", "mid.attn_1."),
        (r"attn_1\.group_norm", "attn_1.norm"),
        (r"attn_1\.out\.0", "attn_1.proj_out"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    tensors = {}
    for key, tensor in vae.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        square = "attn_1" in key and key.endswith("weight") and tensor.dim() == 2
        tensors[f"first_stage_model.{key}"] = tensor[..., None, None] if square else tensor
    return tensors


def original_tensors(pipe) -> dict[str, torch.Tensor]:
    """The weights of a Stable Diffusion 1 by the names of the original code."""
    text = {  # Names of transformers 4 start with text_model, too.
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in pipe.text_encoder.state_dict().items()
    }
    positions = torch.arange(pipe.text_encoder.config.max_position_embeddings)[None]
    text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    tensors = original_unet(pipe.unet) | original_vae(pipe.vae) | text
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_real_size(folder, divisor: int = 1) -> Path:
    """Save a random Stable Diffusion 1.5 in float16 as a single file, with channels divided by a divisor."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer, width = make_tokenizer(), 768 // divisor
    text_config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=tokenizer.model_max_length,
    )
    unet_channels, vae_channels = (tuple(n // divisor for n in sizes) for sizes in ((320, 640, 1280, 1280), VAE_SIZES))
    torch.set_default_dtype(torch.float16)
    try:
        pipe = StableDiffusionPipeline(
            unet=UNet2DConditionModel(sample_size=64, block_out_channels=unet_channels, cross_attention_dim=width),
            vae=AutoencoderKL(
                block_out_channels=vae_channels,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
            text_encoder=CLIPTextModel(text_config),
            tokenizer=tokenizer,
            scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    save_file(original_tensors(pipe), folder / "real.safetensors")
    pipe.save_pretrained(folder / "real")
    for weights in (folder / "real").rglob("*.safetensors"):
        weights.unlink()
    return folder / "real.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tiny_sd, tmp_path_factory):
    """A file with the tiny Stable Diffusion, beside a folder with its configuration."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    folder = tmp_path_factory.mktemp("files")
    save_file(original_tensors(pipe), folder / "tiny.safetensors")
    shutil.copytree(tiny_sd, folder / "tiny", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder / "tiny.safetensors"


@pytest.fixture
def alone(checkpoint, tmp_path):
    """The same file without a folder beside it."""
    return shutil.copy(checkpoint, tmp_path / "alone.safetensors")


def test_a_single_file_is_the_same_model_as_its_folder(checkpoint, alone, pipe, image):
    assert pipeline_class(str(checkpoint)) == "StableDiffusionPipeline"
    assert torch.equal(image(load_pipeline(str(checkpoint))), image(pipe))
    assert torch.equal(image(load_pipeline(str(alone), config=str(checkpoint.with_suffix("")))), image(pipe))


def test_single_files_are_bases_for_merging_and_generating(checkpoint, tiny_sd, adapters, pipe, load, image, tmp_path):
    load_hra_weights(pipe, adapters / "conv")
    merge_hra({adapters / "conv": 1.0}, tmp_path / "merged", base=checkpoint)
    merged = image(load(StableDiffusionPipeline, tmp_path / "merged"))
    assert torch.allclose(merged, image(pipe), rtol=0, atol=1e-4)
    flags = {"adapter": adapters / "conv", "prompt": "a dog", "num_inference_steps": 1, "height": 32, "width": 32}
    images = []
    for base in (checkpoint, tiny_sd):
        arguments = {**flags, "pretrained_model_name_or_path": base, "output_dir": tmp_path / base.stem}
        assert (
            main(["generate", *(text for name, value in arguments.items() for text in (f"--{name}", str(value)))]) == 0
        )
        images.append(next((tmp_path / base.stem).glob("*.png")).read_bytes())
    assert images[0] == images[1]


def test_a_file_that_is_no_model_is_refused_with_the_reason(alone, checkpoint, tmp_path):
    with pytest.raises(
        ModelError, match="needs a folder beside it"
    ):  # its configuration is on the hub, which is unreachable
        load_pipeline(str(alone))
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="pickled, which is never read"):
        load_pipeline(str(tmp_path / "model.ckpt"))
    (tmp_path / "half.safetensors").write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"half\.safetensors"):
        load_pipeline(str(tmp_path / "half.safetensors"))
    with pytest.raises(ModelError, match=r"none\.safetensors"):
        load_pipeline(str(tmp_path / "none.safetensors"))
    save_file({"lora_unet_conv_in.alpha": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=r"lora\.safetensors"):
        load_pipeline(str(tmp_path / "lora.safetensors"), config=str(checkpoint.with_suffix("")))


MEASURE = """
import re, sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
from hra_diffusion.pipelines import load_pipeline

def status(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = status("VmRSS")
pipe = load_pipeline(sys.argv[1], dtype="fp16")
for model in (pipe.unet, pipe.text_encoder, pipe.vae):
    for weight in model.parameters():
        weight.view(-1)[::512].sum()  # read every page of the mapped file
print((status("VmHWM") - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_a_single_file_in_half_precision_loads_within_one_and_a_half_times_its_size(python, tmp_path):
    """Measured 1.09 times at the size of Stable Diffusion 1.5; version 0.1 needed 3.01 times."""
    result = python("-c", MEASURE, save_real_size(tmp_path, divisor=2))
    assert float(result.stdout) <= 1.5, result.stderr


@pytest.fixture
def marked(checkpoint, tmp_path):
    """Return a function that copies the file with more tensors and metadata; the folder beside it predicts noise."""

    def save(*keys: str, **metadata: str) -> str:
        tensors = load_file(checkpoint) | {key: torch.zeros(0) for key in keys}
        file = tmp_path / "marked.safetensors"
        save_file(tensors, file, {f"modelspec.{name}": value for name, value in metadata.items()})
        shutil.copytree(checkpoint.with_suffix(""), file.with_suffix(""), dirs_exist_ok=True)
        return str(file)

    return save


def test_marks_of_a_single_file_set_its_prediction_type(marked, checkpoint):
    assert load_pipeline(str(checkpoint)).scheduler.config.prediction_type == "epsilon"
    for keys, metadata, expected in (
        (["v_pred"], {}, "v_prediction"),
        ([], {"prediction_type": "v"}, "v_prediction"),
        ([], {"architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ([], {"architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ([], {"prediction_type": "v" * 10**6}, "epsilon"),
    ):
        scheduler = load_pipeline(marked(*keys, **metadata)).scheduler
        assert scheduler.config.prediction_type == expected
        assert not scheduler.config.rescale_betas_zero_snr


def test_the_mark_ztsnr_sets_zero_terminal_snr_of_v_prediction_alone(marked):
    file = marked("v_pred", "ztsnr")
    scheduler = load_pipeline(file).scheduler
    assert scheduler.config.rescale_betas_zero_snr and scheduler.config.timestep_spacing == "trailing"
    assert scheduler.alphas_cumprod[-1] < 1e-6
    scheduler = load_pipeline(file, prediction_type="epsilon").scheduler
    assert scheduler.config.prediction_type == "epsilon" and not scheduler.config.rescale_betas_zero_snr


def test_edm_models_with_v_prediction_are_refused(marked):
    with pytest.raises(ModelError, match="EDM model with v-prediction"):
        load_pipeline(marked("edm_vpred.sigma_max"))


SD2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
SD2_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


def test_the_configuration_of_a_stable_diffusion_2_follows_its_prediction_type(tmp_path):
    def guess(bias: torch.Tensor, **metadata: str) -> str:
        save_file({SD2: torch.zeros(2, 1024), SD2_BIAS: bias}, tmp_path / "sd2.safetensors", metadata)
        return guess_config(str(tmp_path / "sd2.safetensors"))

    narrow, wide = 0.05 * torch.tensor([1.0, -1.0]), 0.15 * torch.tensor([1.0, -1.0])
    assert guess(narrow) == "stabilityai/stable-diffusion-2-1-base"
    assert guess(wide) == "stabilityai/stable-diffusion-2-1"
    assert guess(wide, **{"modelspec.prediction_type": "epsilon"}) == "stabilityai/stable-diffusion-2-1-base"
    assert guess(narrow, **{"modelspec.architecture": "stable-diffusion-v2-768-v"}).endswith("2-1")


def test_the_header_is_read_without_the_tensors(checkpoint, monkeypatch):
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("the tensors were read"))
    header = read_header(str(checkpoint))
    assert header.shapes["model.diffusion_model.input_blocks.0.0.weight"] == (16, 4, 3, 3)
    assert "stable-diffusion-v1-5" in guess_config(str(checkpoint))


def test_an_autoencoder_is_taken_from_a_model_folder_and_from_a_single_file(checkpoint, tiny_sd, make_model, tmp_path):
    other = make_model(tmp_path / "other", seed=1)
    expected = AutoencoderKL.from_pretrained(other / "vae", use_safetensors=True)
    weights = original_vae(expected)
    bare = {name.removeprefix("first_stage_model."): tensor.contiguous() for name, tensor in weights.items()}
    save_file(bare, tmp_path / "vae.safetensors")
    for base in (tiny_sd, checkpoint):
        for vae in (other, other / "vae", tmp_path / "vae.safetensors"):
            loaded = load_pipeline(str(base), vae=str(vae), dtype="bf16").vae
            assert loaded.dtype == torch.float32
            assert all(torch.equal(*pair) for pair in zip(loaded.parameters(), expected.parameters(), strict=True))
    del bare["encoder.conv_in.weight"]
    save_file(bare, tmp_path / "vae.safetensors")
    for vae, reason in ((tmp_path / "vae.safetensors", "lacks weights"), (tmp_path / "vae.pt", "pickled")):
        with pytest.raises(ModelError, match=reason):
            load_pipeline(str(tiny_sd), vae=str(vae))


@pytest.fixture
def lone_transformer(tiny_transformer, tmp_path):
    """A tiny FLUX.2 klein, and a file of its transformer with another last layer, by the original code's names."""
    base = tiny_transformer("flux-2-klein")
    weights = load_pipeline(str(base)).transformer.state_dict()
    weights["proj_out.weight"] += 1
    modules = list(dict.fromkeys(name.removesuffix(".weight") for name in weights))
    names = modules_by_name(original_names_of("Flux2Transformer2DModel", modules))
    tensors = {}
    for name, parts in names.items():
        rows = torch.cat([weights[f"{part}.weight"] for part in parts])
        tensors[_weight_name(name)] = swap_halves(rows) if "adaLN" in name else rows
    save_file(tensors, tmp_path / "flux.safetensors")
    return base, tmp_path / "flux.safetensors", weights


def _weight_name(name: str) -> str:
    """Return the name of a weight; the original code names normalizations in another way."""
    if match := re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])", name):
        side = "" if match[1] else "txt_attn." if match[3] else "img_attn."
        kind = "query" if match[4] == "q" else "key"
        return f"{'single' if match[1] else 'double'}_blocks.{match[2]}.{side}norm.{kind}_norm.scale"
    return f"{name}.weight"


@transformer_families
def test_a_file_with_a_transformer_alone_has_the_rest_of_a_whole_model(lone_transformer):
    base, file, weights = lone_transformer
    pipe = load_pipeline(str(file), config=str(base))
    assert all(torch.equal(weight, weights[name]) for name, weight in pipe.transformer.state_dict().items())
    whole = load_pipeline(str(base))
    for name in ("vae", "text_encoder"):
        ours, theirs = (getattr(model, name).state_dict() for model in (pipe, whole))
        assert all(torch.equal(weight, ours[key]) for key, weight in theirs.items())
    options = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": None}
    assert generate_image(pipe, "a dog", 3, **options) != generate_image(whole, "a dog", 3, **options)


@transformer_families
def test_a_file_with_a_transformer_alone_and_a_config_without_weights_is_refused(lone_transformer, tmp_path):
    base, file, _ = lone_transformer
    config = shutil.copytree(base, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match=r"holds a transformer alone, and .* lacks the other comp.*name a whole model"):
        load_pipeline(str(file), config=str(config))
