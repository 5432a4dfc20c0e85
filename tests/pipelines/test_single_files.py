"""Single-file checkpoints with the names of the original code, read by diffusers' converter, are bases, too."""

import re
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from hra_diffusion import load_hra_weights, merge_hra
from hra_diffusion.cli.main import main
from hra_diffusion.errors import ModelError
from hra_diffusion.formats.original_names import original_names
from hra_diffusion.pipelines import load_pipeline, pipeline_class


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


@pytest.fixture(scope="module")
def checkpoint(tiny_sd, tmp_path_factory):
    """A file with the tiny Stable Diffusion, beside a folder with its configuration."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    text = {
        f"cond_stage_model.transformer.text_model.{name}": tensor
        for name, tensor in pipe.text_encoder.state_dict().items()
    }
    positions = torch.arange(pipe.text_encoder.config.max_position_embeddings)[None]
    text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    folder = tmp_path_factory.mktemp("files")
    tensors = original_unet(pipe.unet) | original_vae(pipe.vae) | text
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tiny.safetensors")
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
