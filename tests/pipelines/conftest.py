"""Pipelines of several kinds, and untrained adapters for them with small rotations."""

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.adapter.targets import CLIP_TEXT_FULL, UNET_FULL
from tests import models

PROMPT = "a sks dog"
UNET_EVERYTHING = (*UNET_FULL, "conv1", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "conv_out")
"""Targets with all kinds of convolutions of a UNet."""


def rotated(model, targets, *, rank: int, seed: int, angle: float = 0.1) -> HRAModel:
    """A model with an adapter whose pairs of reflections are about `angle` radians apart."""
    generator = torch.Generator().manual_seed(seed)
    model = HRAModel(model, HRAConfig(r=rank, target_modules=targets), generator=generator)
    with torch.no_grad():
        for layer in model.adapted_layers().values():
            columns = layer.hra_u["default"]
            columns += angle * torch.randn(columns.shape, generator=generator)
    return model


def write_adapter(pipe, folder, *, unet=UNET_FULL, text_encoders=CLIP_TEXT_FULL, rank=4, seed=0, base="some/base"):
    """Write an adapter for a pipeline's components; None excludes a kind of component."""
    for name in ("unet", "text_encoder", "text_encoder_2"):
        targets = unet if name == "unet" else text_encoders
        component = getattr(pipe, name, None)
        if component is not None and targets:
            model = rotated(component, targets, rank=rank, seed=seed)
            model.peft_config["default"] = HRAConfig(r=rank, target_modules=targets, base_model_name_or_path=base)
            model.save_pretrained(folder / name)
            model.unload()
    return folder


def generate(pipe, **options) -> torch.Tensor:
    """An image, (channels, height, width) in 0 … 1."""
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, **options}
    return pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="pt", **options).images[0].float()


def load_kind(kind, folder, **options):
    pipe = kind.from_pretrained(folder, use_safetensors=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def image():
    """The function `generate`."""
    return generate


@pytest.fixture(scope="session")
def load():
    """The function `load_kind`."""
    return load_kind


@pytest.fixture(scope="session")
def make_adapter():
    """The function `write_adapter`."""
    return write_adapter


@pytest.fixture
def pipe(tiny_sd):
    return load_kind(StableDiffusionPipeline, tiny_sd)


@pytest.fixture(scope="session")
def adapters(tiny_sd, tmp_path_factory):
    """Adapters a and b of rank 4, and low of rank 2, for the tiny Stable Diffusion; b adapts the UNet alone."""
    pipe, folder = load_kind(StableDiffusionPipeline, tiny_sd), tmp_path_factory.mktemp("adapters")
    base = str(tiny_sd)
    write_adapter(pipe, folder / "a", seed=1, base=base)
    write_adapter(pipe, folder / "b", seed=2, text_encoders=None, base=base)
    write_adapter(pipe, folder / "low", seed=3, rank=2, base=base)
    write_adapter(pipe, folder / "conv", unet=UNET_EVERYTHING, seed=4, base=base)
    return folder


@pytest.fixture(scope="session")
def xl_adapter(tiny_sdxl, tmp_path_factory):
    """An adapter of all three components of the tiny Stable Diffusion XL."""
    pipe = load_kind(StableDiffusionXLPipeline, tiny_sdxl)
    return write_adapter(pipe, tmp_path_factory.mktemp("adapters") / "xl", base=str(tiny_sdxl))


@pytest.fixture(scope="session")
def xl_conv_adapter(tiny_sdxl, tmp_path_factory):
    """An adapter of all kinds of layers of the UNet of Stable Diffusion XL."""
    pipe = load_kind(StableDiffusionXLPipeline, tiny_sdxl)
    everything = (*UNET_EVERYTHING, "conv_in", "upsamplers.0.conv", "linear_1", "linear_2")
    folder = tmp_path_factory.mktemp("adapters") / "xl-conv"
    return write_adapter(pipe, folder, unet=everything, text_encoders=None, base=str(tiny_sdxl))


@pytest.fixture(scope="session")
def tiny_sd2(tiny_sd, tmp_path_factory):
    """Return the folder of a tiny Stable Diffusion 2: linear projections, one wide text encoder, v-prediction."""
    return models.save_stable_diffusion_2(tmp_path_factory.mktemp("models") / "tiny-sd2", tiny_sd)


@pytest.fixture(scope="session")
def sd2_adapter(tiny_sd2, tmp_path_factory):
    """An adapter of both components of the tiny Stable Diffusion 2."""
    pipe = load_kind(StableDiffusionPipeline, tiny_sd2)
    return write_adapter(pipe, tmp_path_factory.mktemp("adapters") / "sd2", base=str(tiny_sd2))


def _control(folder):
    sd = load_kind(StableDiffusionPipeline, folder)
    controlnet = ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(8, 8, 8))
    return StableDiffusionControlNetPipeline(**sd.components, controlnet=controlnet, requires_safety_checker=False)


def _image() -> Image.Image:
    return Image.effect_noise((32, 32), 60).convert("RGB")


KINDS = {
    "text to image": (lambda folder: load_kind(StableDiffusionPipeline, folder), dict),
    "image to image": (
        lambda folder: load_kind(StableDiffusionImg2ImgPipeline, folder),
        lambda: {"image": _image(), "strength": 0.9, "num_inference_steps": 3},
    ),
    "inpainting": (
        lambda folder: load_kind(StableDiffusionInpaintPipeline, folder),
        lambda: {"image": _image(), "mask_image": _image(), "height": 32, "width": 32, "strength": 1.0},
    ),
    "control": (_control, lambda: {"image": _image()}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    """A function that loads a pipeline from a Stable Diffusion folder, and the options of its call."""
    make, options = KINDS[request.param]
    return make, options()
