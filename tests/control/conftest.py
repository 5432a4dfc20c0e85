"""A control that was never trained but acts: an adapter that turns everything a little, an encoder with an output."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.control import Control, encoder_for, make_annotator, save_hra_control

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj")


def make_control(pipe, folder, seed=0):
    """Write a control for a pipeline's UNet into a folder."""
    generator = torch.Generator().manual_seed(seed)
    encoder = encoder_for(pipe, make_annotator("canny", {"low": 50, "high": 100}), generator)
    pipe.unet = HRAModel(pipe.unet, HRAConfig(r=4, target_modules=TARGETS), generator=generator)
    with torch.no_grad():
        for layer in pipe.unet.layers().values():
            columns = layer.hra_u["default"]
            columns += 0.3 * torch.randn(columns.shape, generator=generator)
        last = encoder.embedding.conv_out.weight
        last.copy_(3 * torch.randn(last.shape, generator=generator))
    save_hra_control(pipe, Control(encoder=encoder, adapter_name="default"), folder)
    pipe.unet = pipe.unet.unload()
    return folder


@pytest.fixture(scope="session")
def control_folder(tiny_sd, tmp_path_factory):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    return make_control(pipe, tmp_path_factory.mktemp("control") / "canny")


@pytest.fixture(scope="session")
def subject_folder(tiny_sd, tmp_path_factory):
    """An adapter of another kind, whose encoder is of no interest."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    return make_control(pipe, tmp_path_factory.mktemp("control") / "subject", seed=1)


@pytest.fixture
def shapes():
    """A picture with edges."""
    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).rectangle((8, 6, 22, 27), fill="blue")
    return picture
