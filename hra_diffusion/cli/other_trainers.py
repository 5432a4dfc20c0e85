"""Flags of other trainers, and what stands for each here: a refused flag names its counterpart.

The names are those of diffusers' examples (train_dreambooth_lora, its SDXL and SD 3 variants, train_controlnet), of
kohya's sd-scripts (train_network), and the keys of OneTrainer's and ai-toolkit's config files.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Counterpart(NamedTuple):
    """What stands for flags of other trainers."""

    names: str
    """The other trainers' names of one setting."""
    trainers: str
    flags: str
    """The flags here; empty if there is no counterpart."""
    note: str = ""
    """What differs, or the reason why there is no counterpart."""

    @property
    def advice(self) -> str:
        """What to do, as the end of a message."""
        return (f"use {self.flags}" if self.flags else "leave it out") + (f" ({self.note})" if self.note else "")


COUNTERPARTS = (
    # Model
    Counterpart("name_or_path base_model_name", "ai-toolkit, OneTrainer", "--pretrained_model_name_or_path"),
    Counterpart("vae vae_path", "kohya, ai-toolkit", "--pretrained_vae_model_name_or_path"),
    Counterpart("v2 is_v2 is_xl model_type", "kohya, OneTrainer, ai-toolkit", "", "the family is read from the model"),
    Counterpart(
        "v_parameterization is_v_pred force_v_prediction force_epsilon_prediction",
        "kohya, OneTrainer, ai-toolkit",
        "--prediction_type",
        "v_prediction or epsilon; by default that of the model's scheduler or of a file's marks",
    ),
    Counterpart(
        "zero_terminal_snr rescale_noise_scheduler_to_zero_terminal_snr",
        "kohya, OneTrainer",
        "--rescale_betas_zero_snr",
    ),
    Counterpart("no_half_vae", "kohya", "", "the autoencoder is always in float32"),
    Counterpart("fp8_base fp8_base_unet", "kohya", "--quantization fp8", "the frozen denoiser in 8 bits"),
    Counterpart("controlnet_model_name_or_path", "diffusers", "", "a control is an adapter and a small encoder here"),
    Counterpart("tokenizer_name tokenizer_cache_dir", "diffusers, kohya", "", "the model's own tokenizer is used"),
    Counterpart("disable_mmap_load_safetensors", "kohya", "", "safetensors files are always mapped into memory"),
    # Adapter
    Counterpart("network_dim lora_rank linear", "kohya, OneTrainer, ai-toolkit", "--rank"),
    Counterpart(
        "network_alpha lora_alpha linear_alpha alpha",
        "diffusers, kohya, OneTrainer, ai-toolkit",
        "",
        "reflections have no scale alpha/rank, and --learning_rate means the same at every rank",
    ),
    Counterpart(
        "conv conv_alpha", "ai-toolkit", "", "layers are chosen with --target_modules, all with the same --rank"
    ),
    Counterpart("lora_layers lora_blocks lora_unet_blocks layer_filter", "diffusers, OneTrainer", "--target_modules"),
    Counterpart(
        "network_dropout lora_dropout dropout dropout_probability",
        "diffusers, kohya, OneTrainer, ai-toolkit",
        "",
        "reflections have no dropout",
    ),
    Counterpart(
        "network_module network_args peft_type training_method use_blora",
        "diffusers, kohya, OneTrainer",
        "",
        "the adapter is always HRA",
    ),
    Counterpart(
        "use_dora lora_decompose",
        "diffusers, OneTrainer",
        "--use_magnitude",
        "the exported adapter is a DoRA",
    ),
    Counterpart(
        "network_weights dim_from_weights lora_model_name base_weights base_weights_multiplier",
        "kohya, OneTrainer",
        "--init_adapter",
        "an HRA adapter, such as hra-diffusion import-lora makes of a LoRA",
    ),
    Counterpart("scale_weight_norms", "kohya", "", "reflections do not change the norms of weights"),
    Counterpart("network_train_unet_only train_unet", "kohya, ai-toolkit", "--no_train_text_encoder"),
    Counterpart("network_train_text_encoder_only", "kohya", "", "the denoiser is always trained"),
    Counterpart(
        "token_abstraction placeholder", "diffusers, OneTrainer", "--instance_prompt", "new words are in <brackets>"
    ),
    Counterpart("token_count tokens", "OneTrainer, ai-toolkit", "--num_new_tokens_per_abstraction"),
    Counterpart("initial_embedding_text init_words", "OneTrainer, ai-toolkit", "--initializer_concept"),
    Counterpart(
        "train_text_encoder_frac train_text_encoder_ti_frac",
        "diffusers",
        "",
        "text encoders are trained for the whole run",
    ),
    # Images
    Counterpart(
        "train_data_dir dataset_name folder_path dataset_path image_dir",
        "diffusers, kohya, ai-toolkit",
        "--instance_data_dir",
    ),
    Counterpart("conditioning_data_dir control_path", "kohya, ai-toolkit", "--train_data_dir", "with train-control"),
    Counterpart("reg_data_dir is_reg", "kohya, ai-toolkit", "--class_data_dir", "with --with_prior_preservation"),
    Counterpart(
        "prior_generation_precision", "diffusers", "--mixed_precision", "class images have the run's precision"
    ),
    Counterpart(
        "enable_bucket aspect_ratio_bucketing buckets", "kohya, OneTrainer, ai-toolkit", "--aspect_ratio_buckets"
    ),
    Counterpart(
        "min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale bucket_tolerance",
        "kohya, ai-toolkit",
        "--aspect_ratio_buckets",
        "sizes follow from --resolution",
    ),
    Counterpart("flip_aug flip_x", "kohya, ai-toolkit", "--random_flip"),
    Counterpart("color_aug", "kohya", "--color_jitter"),
    Counterpart(
        "random_crop face_crop_aug_range random_scale",
        "kohya, ai-toolkit",
        "",
        "crops of both ends and of the center alternate",
    ),
    Counterpart(
        "image_interpolation_mode resize_interpolation", "diffusers, kohya", "", "images are scaled with Lanczos"
    ),
    Counterpart(
        "masked_loss masked_training mask_path",
        "kohya, OneTrainer, ai-toolkit",
        "--mask_data_dir",
        "or --alpha_mask",
    ),
    Counterpart("mask_min_value", "ai-toolkit", "--unmasked_weight"),
    Counterpart(
        "repeats dataset_repeats num_repeats",
        "diffusers, kohya, ai-toolkit",
        "--max_train_steps",
        "images repeat until the last step",
    ),
    Counterpart(
        "cache_latents image_caching text_caching cache_text_encoder_outputs pre_compute_text_embeddings",
        "diffusers, kohya, OneTrainer, ai-toolkit",
        "",
        "images and prompts are always encoded once, ahead of training",
    ),
    Counterpart(
        "cache_latents_to_disk cache_text_encoder_outputs_to_disk", "kohya, ai-toolkit", "--cache_dir", "a folder"
    ),
    Counterpart("vae_batch_size text_encoder_batch_size", "kohya", "", "the batches are chosen here"),
    Counterpart(
        "dataloader_num_workers max_data_loader_n_workers persistent_data_loader_workers caching_threads",
        "diffusers, kohya, OneTrainer",
        "",
        "batches are made of encoded images in memory: there are no workers",
    ),
    Counterpart(
        "dataset_config in_json concept_file_name",
        "kohya, OneTrainer",
        "--instance_data_dir",
        "a folder of folders; subject.toml holds the prompts",
    ),
    # Captions
    Counterpart(
        "caption_extension caption_extention caption_ext",
        "kohya, ai-toolkit",
        "",
        "captions are .txt files or a metadata.jsonl",
    ),
    Counterpart("default_caption", "ai-toolkit", "--instance_prompt"),
    Counterpart(
        "caption_dropout_every_n_epochs",
        "kohya",
        "--caption_dropout_rate",
        "a share of the examples",
    ),
    Counterpart(
        "shuffle_tokens enable_tag_shuffling",
        "OneTrainer, ai-toolkit",
        "--shuffle_caption",
    ),
    Counterpart("keep_tags_count", "OneTrainer", "--keep_tokens"),
    Counterpart("tag_delimiter", "OneTrainer", "--caption_separator"),
    Counterpart(
        "caption_prefix caption_suffix caption_tag_dropout_rate keep_tokens_separator",
        "kohya",
        "",
        "captions are used as written, or with their tags in another order",
    ),
    Counterpart(
        "max_token_length tokenizer_max_length max_sequence_length text_encoder_use_attention_mask weighted_captions",
        "diffusers, kohya",
        "",
        "prompts have the text encoders' own length in training, and no weights",
    ),
    Counterpart("text_encoder_layer_skip", "OneTrainer", "--clip_skip"),
    # Optimizer
    Counterpart("use_8bit_adam", "diffusers, kohya", "--optimizer adamw_8bit"),
    Counterpart("use_lion_optimizer", "kohya", "--optimizer lion"),
    Counterpart("optimizer_type", "kohya", "--optimizer"),
    Counterpart("optimizer_schedulefree_wrapper", "kohya", "--optimizer schedule_free"),
    Counterpart(
        "optimizer_args optimizer_params", "kohya, ai-toolkit", "--adam_beta1", "and --adam_beta2, --adam_epsilon"
    ),
    Counterpart("beta1", "OneTrainer", "--adam_beta1"),
    Counterpart("beta2", "OneTrainer", "--adam_beta2"),
    Counterpart("eps", "OneTrainer", "--adam_epsilon"),
    Counterpart(
        "adam_weight_decay adam_weight_decay_text_encoder weight_decay",
        "diffusers, OneTrainer",
        "",
        "it would change the length of the columns and not the reflections",
    ),
    Counterpart(
        "prodigy_beta3 prodigy_decouple prodigy_use_bias_correction prodigy_safeguard_warmup",
        "diffusers",
        "--optimizer prodigy",
        "with these options set as recommended",
    ),
    Counterpart(
        "lr unet_lr",
        "kohya, ai-toolkit",
        "--learning_rate",
        "in radians: start from the default, not from a LoRA's rate",
    ),
    Counterpart("embedding_lr embedding_learning_rate", "OneTrainer, ai-toolkit", "--text_encoder_lr", "in radians"),
    Counterpart("scale_lr learning_rate_scaler", "diffusers, OneTrainer", "--learning_rate", "set it yourself"),
    Counterpart("learning_rate_scheduler lr_scheduler_type", "kohya, OneTrainer", "--lr_scheduler"),
    Counterpart("learning_rate_warmup_steps", "OneTrainer", "--lr_warmup_steps"),
    Counterpart("lr_scheduler_num_cycles learning_rate_cycles", "kohya, OneTrainer", "--lr_num_cycles"),
    Counterpart("lr_power lr_scheduler_power", "diffusers, kohya", "", "the power of polynomial is 1"),
    Counterpart(
        "lr_scheduler_args lr_scheduler_params lr_scheduler_min_lr_ratio lr_decay_steps learning_rate_min_factor",
        "kohya, OneTrainer, ai-toolkit",
        "--lr_scheduler",
        "schedules have no further options",
    ),
    Counterpart("clip_grad_norm", "OneTrainer", "--max_grad_norm"),
    Counterpart("ema", "OneTrainer", "--use_ema"),
    Counterpart("set_grads_to_none", "diffusers", "", "gradients are always set to None"),
    Counterpart("fused_backward_pass fused_back_pass", "kohya, OneTrainer", "", "the adapter's gradients are small"),
    # Objective
    Counterpart("min_snr_gamma loss_weight_strength", "kohya, OneTrainer, ai-toolkit", "--snr_gamma"),
    Counterpart("loss_weight_fn", "OneTrainer", "--snr_gamma", "or --debiased_estimation_loss"),
    Counterpart("offset_noise_weight", "OneTrainer", "--noise_offset"),
    Counterpart("ip_noise_gamma perturbation_noise_weight", "kohya, OneTrainer", "--input_perturbation"),
    Counterpart(
        "multires_noise_iterations multires_noise_discount adaptive_noise_scale",
        "kohya",
        "--noise_offset",
        "the only kind of offset",
    ),
    Counterpart("weighting_scheme timestep_distribution", "diffusers, kohya, OneTrainer", "--timestep_sampling"),
    Counterpart("timestep_shift", "OneTrainer", "--flow_shift"),
    Counterpart("noising_bias", "OneTrainer", "--logit_mean", "with --timestep_sampling logit_normal"),
    Counterpart("noising_weight", "OneTrainer", "--logit_std", "with --timestep_sampling logit_normal"),
    Counterpart(
        "min_timestep max_timestep min_denoising_steps max_denoising_steps min_noising_strength max_noising_strength",
        "kohya, OneTrainer, ai-toolkit",
        "--timestep_sampling",
        "all noise levels occur",
    ),
    Counterpart(
        "huber_scale huber_strength huber_delta",
        "kohya, OneTrainer",
        "--loss_type",
        "huber or smooth_l1, with --huber_c",
    ),
    Counterpart(
        "v_pred_like_loss scale_v_pred_loss_like_noise_pred", "kohya", "--snr_gamma", "or --debiased_estimation_loss"
    ),
    Counterpart("do_edm_style_training precondition_outputs", "diffusers", "", "EDM's objective is not supported"),
    # Run
    Counterpart("steps", "ai-toolkit", "--max_train_steps"),
    Counterpart("max_train_epochs epochs", "kohya, OneTrainer", "--num_train_epochs"),
    Counterpart("batch_size", "OneTrainer, ai-toolkit", "--train_batch_size"),
    Counterpart("train_dtype full_fp16 full_bf16", "kohya, OneTrainer", "--mixed_precision"),
    Counterpart("compile", "OneTrainer", "--torch_compile"),
    Counterpart("dynamo_backend", "kohya", "--torch_compile"),
    Counterpart(
        "xformers sdpa sdp mem_eff_attn attention_mechanism enable_xformers_memory_efficient_attention",
        "diffusers, kohya, OneTrainer, ai-toolkit",
        "",
        "attention is always torch's scaled_dot_product_attention",
    ),
    Counterpart("lowram highvram", "kohya", "", "what is not needed is moved to the CPU"),
    Counterpart(
        "deepspeed zero_stage offload_optimizer_device offload_param_device multi_gpu device_indexes",
        "kohya, OneTrainer",
        "",
        "start with accelerate launch --config_file configs/accelerate/deepspeed.yaml, or fsdp.yaml",
    ),
    Counterpart("local_rank", "diffusers", "", "accelerate launch sets the process's number"),
    Counterpart("config_file", "kohya", "--config"),
    Counterpart(
        "output_name workspace_dir output_model_destination save_filename_prefix", "kohya, OneTrainer", "--output_dir"
    ),
    Counterpart("save_every_n_steps save_every backup_after", "kohya, OneTrainer, ai-toolkit", "--checkpointing_steps"),
    Counterpart(
        "save_every_n_epochs save_n_epoch_ratio save_state save_state_on_train_end",
        "kohya",
        "--checkpointing_steps",
        "in steps; each checkpoint resumes",
    ),
    Counterpart(
        "save_last_n_steps save_last_n_epochs save_last_n_steps_state rolling_backup_count max_step_saves_to_keep",
        "kohya, OneTrainer, ai-toolkit",
        "--checkpoints_total_limit",
    ),
    Counterpart("resume continue_last_backup", "kohya, OneTrainer", "--resume_from_checkpoint"),
    Counterpart(
        "save_precision save_model_as output_dtype output_model_format save_dtype use_safetensors",
        "kohya, OneTrainer, ai-toolkit",
        "",
        "adapters are float32 safetensors; export-lora has --dtype",
    ),
    Counterpart("output_kohya_format", "diffusers", "", "hra-diffusion export-lora converts the adapter"),
    Counterpart("upcast_before_saving", "diffusers", "", "the adapter is always in float32"),
    Counterpart("no_metadata training_comment", "kohya", "", "config.toml describes the run"),
    Counterpart(
        "push_to_hub hub_model_id hub_token huggingface_repo_id huggingface_token",
        "diffusers, kohya",
        "",
        "hra-diffusion push publishes the adapter",
    ),
    # Trackers and validation
    Counterpart("log_with", "kohya", "--report_to"),
    Counterpart("tensorboard use_wandb", "OneTrainer, ai-toolkit", "--report_to tensorboard", "or wandb"),
    Counterpart(
        "tracker_project_name log_tracker_name log_prefix wandb_run_name",
        "diffusers, kohya",
        "--output_dir",
        "its last part is the project's name",
    ),
    Counterpart("sample_prompts samples prompts", "kohya, OneTrainer, ai-toolkit", "--validation_prompts"),
    Counterpart(
        "sample_every_n_steps sample_every sample_after", "kohya, OneTrainer, ai-toolkit", "--validation_steps"
    ),
    Counterpart(
        "validation_epochs sample_every_n_epochs",
        "diffusers, kohya",
        "--validation_steps",
        "in steps",
    ),
    Counterpart("validate_every_n_epochs", "kohya", "--validate_every_n_steps", "in steps"),
    Counterpart(
        "max_validation_steps validation_seed", "kohya", "", "all held-out images are measured, with noise of --seed"
    ),
    Counterpart(
        "sample_at_first skip_first_sample", "kohya, ai-toolkit", "", "before_after.png has images without the adapter"
    ),
    Counterpart("sample_steps", "ai-toolkit", "--num_inference_steps"),
    Counterpart("sample_sampler sampler", "kohya, ai-toolkit", "", "the model's own scheduler generates"),
    Counterpart(
        "validation_images class_labels_conditioning", "diffusers", "", "DreamBooth here has text prompts only"
    ),
)
"""The table, by subject."""


def counterpart(name: str, known: Iterable[str]) -> Counterpart | None:
    """Return the counterpart of another trainer's flag, if there is one and its flags are known to the command.

    Args:
        name: the flag's name, with underscores and without dashes.
        known: the names of the command's flags.
    """
    for row in COUNTERPARTS:
        if name in row.names.split() and {part.removeprefix("no_") for part in flag_names(row.flags)} <= set(known):
            return row
    return None


def flag_names(text: str) -> list[str]:
    """Return the names of the flags in a text, without their dashes."""
    return re.findall(r"--([a-z_0-9]+)", text)
