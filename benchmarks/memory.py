"""Predicted memory, launches and parameters of the shipped configs on a GPU: `python benchmarks/memory.py`.

    --only subject-sdxl-12gb …    some of the configs

The models have their true sizes and no data, so that this takes a minute and little memory on any machine; see
`hra_diffusion.training.devices.memory_prediction`. `--measure` takes a training step of Stable Diffusion 1.5 in float32
on the CPU, with data, and prints its memory beside the prediction.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from measure import describe_machine, print_table, process_peak
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode, unset_fake_temporarily
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from workloads import UNETS

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.control import ConditionEncoder
from hra_diffusion.control.condition_inputs import condition_input
from hra_diffusion.pipelines.bases import PRECISIONS
from hra_diffusion.resources import DATA
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig
from hra_diffusion.training.config.file import read_toml, with_values
from hra_diffusion.training.devices.memory_prediction import PhaseMemory, predict_memory
from hra_diffusion.training.families import FAMILIES, Conditioning, Family
from hra_diffusion.training.families.controlled_denoiser import CONDITION, CONDITION_KEPT, ControlledDenoiser
from hra_diffusion.training.setup import add_adapters

TOKENIZER = DATA / "assets" / "emoji-sd" / "tokenizer"
CPU = torch.device("cpu")


class T5Tokenizer:
    """A tokenizer whose prompts have no content."""

    def __call__(self, prompts: list[str], *, max_length: int, **_: Any) -> Any:
        return argparse.Namespace(input_ids=torch.zeros(len(prompts), max_length, dtype=torch.long))


def clip(width: int, layers: int, heads: int, projection: int, *, projected: bool) -> Any:
    """Return a CLIP text encoder."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def autoencoder(channels: int, size: int) -> AutoencoderKL:
    """Return the autoencoder of Stable Diffusion, in float32."""
    torch.set_default_dtype(torch.float32)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        sample_size=size,
    )


def t5_xxl() -> T5EncoderModel:
    """Return the T5 of Stable Diffusion 3, FLUX.1 and Chroma."""
    config = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, d_kv=64, feed_forward_proj="gated-gelu")
    return T5EncoderModel(config)


def stable_diffusion_15() -> Any:
    """Return Stable Diffusion 1.5."""
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**UNETS["unet-sd15"]),
        text_encoder=clip(768, 12, 12, 768, projected=False),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        vae=autoencoder(4, 512),
    )


def stable_diffusion_xl() -> Any:
    """Return Stable Diffusion XL."""
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**UNETS["unet-sdxl"]),
        text_encoder=clip(768, 12, 12, 768, projected=False),
        text_encoder_2=clip(1280, 32, 20, 1280, projected=True),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=DDPMScheduler(),
        add_watermarker=False,
        vae=autoencoder(4, 1024),
    )


def stable_diffusion_35_medium() -> Any:
    """Return Stable Diffusion 3.5 medium."""
    transformer = SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        num_attention_heads=24,
        attention_head_dim=64,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    with unset_fake_temporarily():  # it reads its own values
        scheduler = FlowMatchEulerDiscreteScheduler()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        text_encoder=clip(768, 12, 12, 768, projected=True),
        text_encoder_2=clip(1280, 32, 20, 1280, projected=True),
        text_encoder_3=t5_xxl(),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_3=T5Tokenizer(),
        scheduler=scheduler,
        vae=autoencoder(16, 1024),
    )


def qwen3_4b() -> dict[str, Any]:
    """Return the text encoder of Z-Image and FLUX.2 klein with a tokenizer whose prompts have no content."""
    config = Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    template = "{{ messages[0].content }}"
    return {"text_encoder": Qwen3Model(config), "tokenizer": Qwen2TokenizerFast(chat_template=template)}


def z_image() -> Any:
    """Return Z-Image."""
    with unset_fake_temporarily():  # it reads its own values
        scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    parts = {"transformer": ZImageTransformer2DModel(), **qwen3_4b(), "scheduler": scheduler}
    return ZImagePipeline(vae=autoencoder(16, 1024), **parts)


def qwen_image() -> Any:
    """Return Qwen-Image."""
    schedule = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    with unset_fake_temporarily():
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **schedule)
    parts = {"transformer": QwenImageTransformer2DModel(), "scheduler": scheduler, **qwen_vl_7b()}
    torch.set_default_dtype(torch.float32)
    return QwenImagePipeline(vae=AutoencoderKLQwenImage(), **parts)


def qwen_vl_7b() -> dict[str, Any]:
    """Return the text encoder of Qwen-Image with a tokenizer that knows one token of the template."""
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config={"hidden_size": 1280, "out_hidden_size": 3584})
    tokenizer = Qwen2TokenizerFast(additional_special_tokens=["<|im_start|>"])
    return {"text_encoder": Qwen2_5_VLForConditionalGeneration(config), "tokenizer": tokenizer}


def flux_1_dev() -> Any:
    """Return FLUX.1 dev."""
    with unset_fake_temporarily():
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(
        transformer=FluxTransformer2DModel(guidance_embeds=True),
        text_encoder=clip(768, 12, 12, 768, projected=False),
        text_encoder_2=t5_xxl(),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=T5TokenizerFast(),
        scheduler=scheduler,
        vae=autoencoder(16, 1024),
    )


def chroma() -> Any:
    """Return Chroma."""
    with unset_fake_temporarily():
        scheduler = FlowMatchEulerDiscreteScheduler()
    return ChromaPipeline(
        transformer=ChromaTransformer2DModel(),
        text_encoder=t5_xxl(),
        tokenizer=T5TokenizerFast(),
        scheduler=scheduler,
        vae=autoencoder(16, 1024),
    )


def flux_2_klein_4b() -> Any:
    """Return FLUX.2 klein with 4 billion weights."""
    with unset_fake_temporarily():
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    transformer = Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )
    parts = {"transformer": transformer, **qwen3_4b(), "scheduler": scheduler}
    torch.set_default_dtype(torch.float32)
    return Flux2KleinPipeline(vae=AutoencoderKLFlux2(), **parts)


def flux_2_dev() -> Any:
    """Return FLUX.2 dev."""
    with unset_fake_temporarily():
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = {"transformer": Flux2Transformer2DModel(), "scheduler": scheduler, **mistral_3_24b()}
    torch.set_default_dtype(torch.float32)
    return Flux2Pipeline(vae=AutoencoderKLFlux2(), **parts)


def mistral_3_24b() -> dict[str, Any]:
    """Return the text encoder of FLUX.2 dev with a tokenizer whose prompts have no content."""
    text = {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
    }
    config = Mistral3Config(text_config=text, tie_word_embeddings=False)
    tokenizer = Qwen2TokenizerFast(chat_template="{{ messages[1].content[0].text }}")
    return {"text_encoder": Mistral3ForConditionalGeneration(config), "tokenizer": tokenizer}


def tiny_stable_diffusion() -> Any:
    """Return a tiny model with the components of Stable Diffusion 1.5."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
    )
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**UNETS["unet-smoke"]),
        text_encoder=clip(16, 1, 2, 16, projected=False),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        vae=vae,
    )


MODELS: dict[str, Callable[[], Any]] = {
    "subject-sd15-8gb": stable_diffusion_15,
    "subject-sdxl-12gb": stable_diffusion_xl,
    "subject-sd35-medium-12gb": stable_diffusion_35_medium,
    "subject-z-image-24gb": z_image,
    "subject-flux1-dev-16gb": flux_1_dev,
    "subject-chroma-16gb": chroma,
    "subject-flux2-klein-16gb": flux_2_klein_4b,
    "subject-flux2-dev-24gb": flux_2_dev,
    "subject-qwen-image-24gb": qwen_image,
    "control-flux2-klein-16gb": flux_2_klein_4b,
    "face": stable_diffusion_15,
    "style": stable_diffusion_15,
}


class ConfiguredModel(NamedTuple):
    """A config's denoiser with adapters, its family, a batch, and the precision of autocasting."""

    denoiser: nn.Module
    family: Family
    inputs: dict[str, torch.Tensor]
    precision: torch.dtype


def set_up(path: Path, device: torch.device = CPU) -> ConfiguredModel:
    """Build the model of a config of configs/ with random weights, on torch's default device."""
    config = read_toml(path, ControlNetConfig() if path.stem.startswith("control") else DreamBoothConfig())
    precision = PRECISIONS[config.run.mixed_precision]
    torch.set_default_dtype(precision)
    pipe = MODELS[path.stem]()  # ends with the autoencoder, in float32
    family = FAMILIES[type(pipe).__name__](pipe)
    config = with_values(config, family.default_settings(config))
    add_adapters(family, config.adapter, config.model, config.run, device)
    trains = config.adapter.text_encoder_trains
    is_control = isinstance(config, ControlNetConfig)
    rows = config.run.train_batch_size * (1 if is_control or not config.prior.with_prior_preservation else 2)
    resolution = (config.pairs.resolution if is_control else config.data.largest_resolution) or 0
    side = resolution // family.pixels_per_latent
    conditions = encode_empty_prompt(family, trains) | {"sizes": torch.zeros(1, 6)}
    inputs = {name: value.expand(rows, *value.shape[1:]) for name, value in conditions.items()}
    latents = pipe.vae.config.get("latent_channels") or pipe.vae.config.z_dim
    inputs["latents"] = torch.zeros(rows, latents * family.latent_space.patch**2, side, side)
    denoiser = family.denoiser(trains)
    if is_control:
        target = condition_input(family.model)
        encoder = ConditionEncoder(target.channels(family.model), target.scale_factor(pipe))
        denoiser = ControlledDenoiser(denoiser, pipe, encoder)
        inputs[CONDITION] = torch.zeros(rows, 3, resolution, resolution, dtype=torch.uint8)
        inputs[CONDITION_KEPT] = torch.ones(rows)
    return ConfiguredModel(denoiser, family, inputs, precision)


def predict(path: Path) -> list[PhaseMemory]:
    """Predict the memory of a config of configs/."""
    return predict_and_count(path)[0]


def predict_and_count(path: Path) -> tuple[list[PhaseMemory], int, int]:
    """Predict the memory of a config, and count the parameters of its denoiser: all, and those that are trained."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        denoiser, family, inputs, precision = set_up(path)
        parameters = list(denoiser.parameters())
        trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
        phases = predict_memory(denoiser, family, inputs, precision=precision)
        return phases, sum(weight.numel() for weight in parameters), trained


def encode_empty_prompt(family: Family, trains: bool) -> Conditioning:
    """Encode an empty prompt; where its number of tokens depends on data, it has as many as are read."""
    try:
        return family.encode_prompts([""], trains)
    except DynamicOutputShapeException:
        tokens, width = family.prompt_tokens, family.pipe.text_encoder.config.get_text_config().hidden_size  # pyright: ignore
        mask = torch.ones(1, tokens, dtype=torch.bool)
        return {"prompt": torch.zeros(1, tokens, width, dtype=family.model.dtype), "prompt_mask": mask}


def measure() -> None:
    """Compare the prediction of a step of Stable Diffusion 1.5 with the memory of this process."""
    before = process_peak()
    pipe = stable_diffusion_15()
    family = FAMILIES["StableDiffusionPipeline"](pipe)
    for model in (pipe.unet, pipe.text_encoder, pipe.vae):
        model.requires_grad_(False)
    pipe.unet = HRAModel(pipe.unet, HRAConfig(r=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    denoiser = family.denoiser(False)
    inputs = {"latents": torch.randn(1, 4, 64, 64)} | family.encode_prompts([""], False)
    (step,) = (part for part in predict_memory(denoiser, family, inputs) if part.phase == "train")
    others = sum(weight.nbytes for model in (pipe.text_encoder, pipe.vae) for weight in model.parameters())
    optimizer = torch.optim.AdamW(weight for weight in denoiser.parameters() if weight.requires_grad)
    for _ in range(2):
        latents = inputs["latents"]
        prediction = denoiser(latents, torch.zeros(1, dtype=torch.long), inputs)
        (prediction - latents).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(
        f"a step of Stable Diffusion 1.5, 512 px, float32: {step.peak / 1e9:.2f} GB predicted, "
        f"{process_peak() - before - others / 1e9:.2f} GB measured"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    if options.measure:
        measure()
        return
    for name in options.only:
        phases, parameters, trained = predict_and_count(DATA / "configs" / f"{name}.toml")
        rows = [
            (part.phase, part.component, f"{part.weights / 1e9:.2f} GB", f"{part.peak / 1e9:.2f} GB", part.launches)
            for part in phases
        ]
        title = f"{name}: {parameters:,} parameters in training, {trained:,} of them trained"
        print_table(title, ("phase", "component", "weights", "peak", "launches"), rows)


if __name__ == "__main__":
    main()
