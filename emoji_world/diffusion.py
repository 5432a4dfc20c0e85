"""The denoiser and its text encoder, trained together from random weights on cached latents.

v-prediction on a schedule with zero terminal SNR (Lin et al. 2024, arXiv 2305.08891), so that black and white
backgrounds keep their brightness. One caption in ten is empty, for classifier-free guidance.
"""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emoji_world.tokenizer import LENGTH

BATCH = 48
_WIDTH = 192


def build_unet() -> UNet2DConditionModel:
    """Build the untrained denoiser of 16 × 16 × 8 latents, with attention at every resolution."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, in spite of its name
        cross_attention_dim=_WIDTH,
        norm_num_groups=16,
    )
    return unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the untrained text encoder: CLIP's, with three layers and 192 channels."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=LENGTH,
        projection_dim=_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=1.0,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """Build SD's scheduler rescaled to zero terminal SNR, v-prediction, trailing spacing."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def loss_function(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: Tensor,
    token_ids: Tensor,
    empty: Tensor,
    batch: int = BATCH,
) -> Callable[[torch.Generator], Tensor]:
    """Return the v-loss on a random batch of `latents` (N, 8, H, W).

    `token_ids` (N, 24) are the captions, `empty` (24,) is the empty caption.
    """
    scheduler = build_scheduler()

    def compute_loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (batch,), generator=generator)
        ids = token_ids[index].clone()
        ids[torch.rand(batch, generator=generator) < 0.1] = empty
        clean = latents[index].float()
        noise = torch.randn(clean.shape, generator=generator)
        steps = scheduler.config["num_train_timesteps"]
        # One time in each of `batch` equal intervals: less variance than independent samples.
        times = ((torch.arange(batch) + torch.rand(batch, generator=generator)) / batch * steps).long()
        noisy = scheduler.add_noise(clean, noise, times).to(memory_format=torch.channels_last)
        target = scheduler.get_velocity(clean, noise, times)
        words = text_encoder(ids).last_hidden_state
        return functional.mse_loss(unet(noisy, times, words).sample, target)

    return compute_loss


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token ids of shape (N, 24), padded and truncated as in Stable Diffusion pipelines."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
