"""A short run on the tiny model, accelerate's state forgotten after each test that trains, and other tiny models.

The latter are built around the autoencoder and the tokenizer of the tiny Stable Diffusion.
"""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import with_values


@pytest.fixture
def fresh_accelerate():
    """Forget accelerate's state, which a process has once, so that each run may set its own precision."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def config(tiny_sd, images, tmp_path, fresh_accelerate):
    values = {
        "pretrained_model_name_or_path": str(tiny_sd),
        "instance_data_dir": images,
        "output_dir": tmp_path / "run",
        "with_prior_preservation": True,
        "num_class_images": 3,
        "train_text_encoder": True,
        "max_train_steps": 4,
        "train_batch_size": 2,
        "num_inference_steps": 2,
        "num_validation_images": 1,
    }
    return with_values(DreamBoothConfig(), values)


def clip(kind, tokenizer, width, *, projection=16):
    """A CLIP text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_sd, tmp_path_factory):
    """A folder with a tiny SDXL that predicts noise: images of 32 px, two text encoders 32 and 16 wide."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_pretrained(tiny_sd / "vae"),
            text_encoder=clip(CLIPTextModel, tokenizer, 32),
            text_encoder_2=clip(CLIPTextModelWithProjection, tokenizer, 16),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2),
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                cross_attention_dim=48,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=16 + 6 * 8,
                norm_num_groups=4,
            ),
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
            add_watermarker=False,
        )
    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd3(tiny_sd, tmp_path_factory):
    """A folder with a tiny SD 3 with T5, whose tokenizer is CLIP's: images of 32 px."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import T5Config, T5EncoderModel

    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL.from_pretrained(tiny_sd / "vae")
        vae.register_to_config(shift_factor=0.06)
        t5 = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        pipe = StableDiffusion3Pipeline(
            vae=vae,
            text_encoder=clip(CLIPTextModelWithProjection, tokenizer, 32),
            text_encoder_2=clip(CLIPTextModelWithProjection, tokenizer, 16),
            text_encoder_3=T5EncoderModel(t5),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            tokenizer_3=tokenizer,
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=64,
                caption_projection_dim=32,
                pooled_projection_dim=32,
                pos_embed_max_size=16,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    folder = tmp_path_factory.mktemp("models") / "tiny-sd3"
    pipe.save_pretrained(folder)
    return folder
