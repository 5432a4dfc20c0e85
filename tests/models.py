"""Factories of tiny models with random weights: images of 32 px, latents of 8 × 8.

A function `make_…` returns a model, a function `save_…` writes a model's folder and returns the path. Libraries are
imported when a factory runs: tests of the mathematics start without them.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

WORD_END = "</w>"


class Net(nn.Module):
    """Two named blocks of linear layers, a normalization and an output layer."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"q": nn.Linear(width, width), "v": nn.Linear(width, 8, bias=False), "out": nn.Linear(8, width)}
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block["out"](torch.tanh(block["q"](x).narrow(-1, 0, 8) * block["v"](x)))
        return self.head(self.norm(x))


def make_tokenizer():
    """Make a CLIPTokenizer with one token for each byte, and another for each byte at the end of a word."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:  # The constructor takes tokens in transformers 5 and files before.
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), "utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", "utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=40)


def make_unet(**options):
    """Make a UNet of two resolutions, by default for Stable Diffusion 1."""
    from diffusers import UNet2DConditionModel

    defaults = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**defaults, **options})


def make_text_encoder(tokenizer=None, width=32, *, projection=False, **options):
    """Make a CLIP text encoder of two layers; without a tokenizer, for 8 tokens of a vocabulary of 50."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    defaults = {
        **(_special_tokens(tokenizer) if tokenizer else {"vocab_size": 50, "max_position_embeddings": 8}),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(CLIPTextConfig(**{**defaults, **options}))


def make_autoencoder(*, tiny=False):
    """Make an AutoencoderKL, or an AutoencoderTiny, with latents of four channels at a quarter of the size."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    if tiny:
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    )


def save_stable_diffusion(folder, *, prediction_type="epsilon", tiny_autoencoder=False, half=False, seed=0) -> Path:
    """Save a Stable Diffusion 1 of some 100,000 weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae, tokenizer = make_unet(), make_autoencoder(tiny=tiny_autoencoder), make_tokenizer()
        pipe = StableDiffusionPipeline(
            unet=unet,
            vae=vae,
            tokenizer=tokenizer,
            text_encoder=make_text_encoder(tokenizer),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                clip_sample=False,
                prediction_type=prediction_type,
                rescale_betas_zero_snr=prediction_type == "v_prediction",
                timestep_spacing="trailing",
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    if half:
        pipe.to(torch.float16)
    pipe.save_pretrained(folder)
    return folder


def save_stable_diffusion_2(folder, base) -> Path:
    """Save a Stable Diffusion 2 with the autoencoder of `base`: linear projections, wide text encoder, v-prediction."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    sd = StableDiffusionPipeline.from_pretrained(base, use_safetensors=True)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        text_encoder = make_text_encoder(sd.tokenizer, 1024, intermediate_size=64, num_attention_heads=16)
        unet = make_unet(cross_attention_dim=1024, use_linear_projection=True)
    scheduler = DDIMScheduler.from_config(
        sd.scheduler.config, prediction_type="v_prediction", timestep_spacing="leading"
    )
    components = {**sd.components, "text_encoder": text_encoder, "unet": unet, "scheduler": scheduler}
    StableDiffusionPipeline(**components, requires_safety_checker=False).save_pretrained(folder)
    return folder


def save_stable_diffusion_xl(folder, base) -> Path:
    """Save an SDXL with the autoencoder of `base`: two text encoders, 32 and 16 wide, and added conditions."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_pretrained(base / "vae"),
            text_encoder=make_text_encoder(tokenizer, 32),
            text_encoder_2=make_text_encoder(tokenizer, 16, projection=True),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=make_unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2),
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                cross_attention_dim=48,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=16 + 6 * 8,
            ),
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
            add_watermarker=False,
        )
    pipe.save_pretrained(folder)
    return folder


def save_stable_diffusion_3(folder, base) -> Path:
    """Save a Stable Diffusion 3 with the autoencoder of `base`; its T5 has the tokenizer of CLIP."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTokenizer, T5Config, T5EncoderModel

    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL.from_pretrained(base / "vae")
        vae.register_to_config(shift_factor=0.06)
        t5 = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        pipe = StableDiffusion3Pipeline(
            vae=vae,
            text_encoder=make_text_encoder(tokenizer, 32, projection=True),
            text_encoder_2=make_text_encoder(tokenizer, 16, projection=True),
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
    pipe.save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's chat template for one message."""


def make_chat_tokenizer():
    """Make a Qwen2Tokenizer with one token for each byte, and Qwen3's chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocabulary = {token: i for i, token in enumerate((*sorted(ByteLevel.alphabet()), *special))}
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", "utf-8")
        return Qwen2TokenizerFast.from_pretrained(
            folder, model_max_length=1000, additional_special_tokens=special[1:], chat_template=CHAT_TEMPLATE
        )


def make_qwen3(tokenizer, width=16, layers=2, *, with_head=False):
    """Make a Qwen3 of some layers; with a head, as a causal language model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (Qwen3ForCausalLM if with_head else Qwen3Model)(config)


def save_z_image(folder, base, *, shift=6.0) -> Path:
    """Save a Z-Image of diffusers' test size with the autoencoder of `base`."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )

    tokenizer = make_chat_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL.from_pretrained(base / "vae")
        vae.register_to_config(scaling_factor=0.36, shift_factor=0.11)
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[768, 32, 32],
        )
        pipe = ZImagePipeline(
            vae=vae,
            text_encoder=make_qwen3(tokenizer),
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        )
    pipe.save_pretrained(folder)
    return folder


def make_t5_tokenizer():
    """Make a T5Tokenizer with one token for each ASCII character."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    characters = ["\u2581", *map(chr, range(33, 127))]
    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")] + [(token, -1.0) for token in characters]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        return T5TokenizerFast.from_pretrained(folder, model_max_length=512, extra_ids=0)


def make_t5(tokenizer, width=32):
    """Make the encoder of a T5 of one layer."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


_FLUX_1_SIZES = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}


def _flux_1_parts(base):
    """Return FLUX.1's autoencoder, from that of `base`, and its scheduler."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    vae = AutoencoderKL.from_pretrained(base / "vae")
    vae.register_to_config(scaling_factor=0.36, shift_factor=0.11)
    return {"vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)}


def save_flux_1(folder, base, *, kontext=False) -> Path:
    """Save a FLUX.1 dev or Kontext of diffusers' test size with the autoencoder of `base`."""
    from diffusers import FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTokenizer

    tokenizer, t5_tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer"), make_t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = (FluxKontextPipeline if kontext else FluxPipeline)(
            text_encoder=make_text_encoder(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=make_t5(t5_tokenizer),
            tokenizer_2=t5_tokenizer,
            transformer=FluxTransformer2DModel(**_FLUX_1_SIZES, pooled_projection_dim=32, guidance_embeds=True),
            **_flux_1_parts(base),
        )
    pipe.save_pretrained(folder)
    return folder


def save_chroma(folder, base) -> Path:
    """Save a Chroma of diffusers' test size with the autoencoder of `base`."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    tokenizer = make_t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = ChromaPipeline(
            text_encoder=make_t5(tokenizer),
            tokenizer=tokenizer,
            transformer=ChromaTransformer2DModel(
                **_FLUX_1_SIZES, approximator_num_channels=32, approximator_hidden_dim=32, approximator_layers=1
            ),
            **_flux_1_parts(base),
        )
    pipe.save_pretrained(folder)
    return folder


def save_flux_2(folder, *, dev=False) -> Path:
    """Save a FLUX.2 klein or dev of diffusers' test size.

    The pipelines read their text encoders' layers 9, 18 and 27, or 10, 20 and 30.
    """
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Pipeline,
        Flux2Transformer2DModel,
    )

    tokenizer = make_mistral_tokenizer() if dev else make_chat_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
        pipe = (Flux2Pipeline if dev else Flux2KleinPipeline)(
            vae=vae,
            text_encoder=make_mistral_3(tokenizer) if dev else make_qwen3(tokenizer, layers=28, with_head=True),
            tokenizer=tokenizer,
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=48,
                timestep_guidance_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=dev,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )
    pipe.save_pretrained(folder)
    return folder


MISTRAL_TEMPLATE = (
    "<s>{% for message in messages %}"
    "{{ '[SYSTEM_PROMPT]' if message.role == 'system' else '[INST]' }}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}"
    "{{ '[/SYSTEM_PROMPT]' if message.role == 'system' else '[/INST]' }}"
    "{% endfor %}"
)
"""Mistral's chat template for texts."""


def make_mistral_tokenizer():
    """Make a tokenizer with one token for each byte, Mistral's chat template and its start token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")
    special = (*special, "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate((*special, *letters))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=special[3:],
        padding_side="left",
        chat_template=MISTRAL_TEMPLATE,
    )


def make_mistral_3(tokenizer, width=16):
    """Make a Mistral 3 of 31 layers, with one layer for images."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    sizes = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": 2, "head_dim": 8}
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 31, "num_key_value_heads": 2}
    image = {"model_type": "pixtral", "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    config = Mistral3Config(
        text_config=sizes | text | {"max_position_embeddings": 1024, "pad_token_id": tokenizer.pad_token_id},
        vision_config=sizes | image,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    return Mistral3ForConditionalGeneration(config)


def save_qwen_image(folder) -> Path:
    """Save a Qwen-Image of diffusers' test size."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = make_chat_tokenizer()
    schedule = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = QwenImagePipeline(
            vae=AutoencoderKLQwenImage(
                base_dim=12,
                z_dim=4,
                dim_mult=[1, 2, 2],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.1, -0.2, 0.3, -0.4],
                latents_std=[0.5, 1.0, 1.5, 2.0],
            ),
            text_encoder=make_qwen_vl(tokenizer),
            tokenizer=tokenizer,
            transformer=QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=3,
                joint_attention_dim=16,
                axes_dims_rope=(8, 4, 4),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **schedule),
        )
    pipe.save_pretrained(folder)
    return folder


def make_qwen_vl(tokenizer, width=16):
    """Make a Qwen2.5-VL of two layers, with one layer for images."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    image = {"depth": 1, "hidden_size": width, "intermediate_size": width, "num_heads": 2, "out_hidden_size": width}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**image, "fullatt_block_indexes": [0]})
    return Qwen2_5_VLForConditionalGeneration(config)


def save_control(folder, base, seed=0) -> Path:
    """Save an untrained control of edges with a visible effect: random reflections, a random last encoder layer."""
    from diffusers import StableDiffusionPipeline

    from hra_diffusion import HRAConfig, HRAModel
    from hra_diffusion.control import Control, make_annotator, make_encoder, save_hra_control

    pipe = StableDiffusionPipeline.from_pretrained(base, use_safetensors=True)
    generator = torch.Generator().manual_seed(seed)
    encoder = make_encoder(pipe, make_annotator("canny", {"low": 50, "high": 100}), generator)
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj")
    pipe.unet = HRAModel(pipe.unet, HRAConfig(r=4, target_modules=targets), generator=generator)
    with torch.no_grad():
        for layer in pipe.unet.adapted_layers().values():
            columns = layer.hra_u["default"]
            columns += 0.3 * torch.randn(columns.shape, generator=generator)
        last = encoder.embedding.conv_out.weight
        last.copy_(3 * torch.randn(last.shape, generator=generator))
    return save_hra_control(pipe, Control(encoder=encoder, adapter_name="default"), folder)


def save_clip(folder, *, attributes=None, seed=0) -> Path:
    """Save a CLIPModel for images of 32 px; with `attributes`, as a judge with this vocabulary."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from hra_diffusion.metrics.vocabulary import FILE, Vocabulary

    tokenizer = make_tokenizer()
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, **_special_tokens(tokenizer)}
    vision = {**layers, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if attributes:
        vocabulary = Vocabulary(
            attributes=attributes,
            contexts=dict(list(attributes["background"].items())[:4]),
            unrelated=["a bus", "a dog on the beach", "a house", "a fish"],
        )
        (folder / FILE).write_text(vocabulary.to_json())
    return folder


def save_depth_model(folder) -> Path:
    """Save a depth model of transformers."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    sizes = {"depths": [1] * 4, "sr_ratios": [2, 1, 1, 1], "hidden_sizes": [8] * 4, "decoder_hidden_size": 8}
    torch.manual_seed(0)
    config = GLPNConfig(num_attention_heads=[1] * 4, mlp_ratios=[1] * 4, **sizes)
    GLPNForDepthEstimation(config).save_pretrained(folder)
    GLPNImageProcessor().save_pretrained(folder)
    return folder


def _special_tokens(tokenizer) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


TRANSFORMERS = {
    "z-image": save_z_image,
    "flux-1": save_flux_1,
    "chroma": save_chroma,
    "flux-2-klein": lambda folder, _: save_flux_2(folder),
    "flux-2-dev": lambda folder, _: save_flux_2(folder, dev=True),
    "qwen-image": lambda folder, _: save_qwen_image(folder),
}
"""Functions that save a tiny model of each family of transformers into a folder, with the autoencoder of a base."""
