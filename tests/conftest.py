"""Shared fixtures: small models of the kinds that are adapted, a tiny Stable Diffusion on disk, folders of images."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

VOCABULARY_END = "</w>"
PROJECT = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers(config):
    """As many as there are processors, up to four, for the whole suite; none for a part, which imports take most of."""
    return min(os.cpu_count() or 1, 4) if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """The function that does what ``python <arguments>`` does in a folder, without the time for imports."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    printed = [tmp_path_factory.mktemp("printed") / name for name in ("stdout", "stderr")]
    program = [sys.executable, str(PROJECT / "tests" / "warm_python.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, env=environment, start_new_session=True, **pipes) as process:

        def run(*arguments: object, cwd: Path = PROJECT) -> subprocess.CompletedProcess:
            for path in printed:
                path.write_bytes(b"")
            order = (str(cwd), [str(each) for each in arguments], *map(str, printed))
            try:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                exit_code = int(process.stdout.readline())
            except BaseException:  # such as a time-out: its answer must not be taken for that of the next order
                os.killpg(process.pid, signal.SIGKILL)
                raise
            return subprocess.CompletedProcess(arguments, exit_code, *(path.read_text("utf-8") for path in printed))

        yield run
        process.stdin.close()


def make_stable_diffusion(folder, *, prediction_type="epsilon", tiny_autoencoder=False, half=False, seed=0):
    """Save a StableDiffusionPipeline of some 100,000 random weights: images of 32 px, latents of 8×8."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        blocks = {"block_out_channels": (8, 8, 16), "in_channels": 3, "out_channels": 3, "latent_channels": 4}
        if tiny_autoencoder:
            vae = AutoencoderTiny(
                encoder_block_out_channels=(8, 8, 8),
                decoder_block_out_channels=(8, 8, 8),
                num_encoder_blocks=(1, 1, 1),
                num_decoder_blocks=(1, 1, 1),
            )
        else:
            vae = AutoencoderKL(
                **blocks,
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=4,
            )
        tokenizer = make_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type == "v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if half:
        pipe.to(torch.float16)
    pipe.save_pretrained(folder)
    return folder


def make_tokenizer():
    """A CLIPTokenizer that spells: one token a byte, a byte at a word's end being a token of its own."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + VOCABULARY_END for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=40)


@pytest.fixture(scope="session")
def make_model():
    """The function that saves a tiny Stable Diffusion: see its arguments."""
    return make_stable_diffusion


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory) -> Path:
    """A folder with a tiny Stable Diffusion that predicts noise."""
    return make_stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory) -> Path:
    """The same with v-prediction and zero terminal SNR."""
    return make_stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_xl(tiny_sd, tmp_path_factory) -> Path:
    """A folder with a tiny Stable Diffusion XL: two text encoders, added conditions, linear projections."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sd = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        text = {**sd.text_encoder.config.to_dict(), "projection_dim": 16}
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=2,
            norm_num_groups=4,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_config(sd.vae.config),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
            tokenizer=sd.tokenizer,
            tokenizer_2=sd.tokenizer,
            unet=unet,
            scheduler=DDIMScheduler.from_config(sd.scheduler.config),
        )
    folder = tmp_path_factory.mktemp("models") / "tiny-xl"
    pipe.save_pretrained(folder)
    return folder


def make_control(base, folder, seed=0):
    """Write a control that was never trained but acts: its adapter turns everything, its encoder says something."""
    from diffusers import StableDiffusionPipeline

    from hra_diffusion import HRAConfig, HRAModel
    from hra_diffusion.control import Control, encoder_for, make_annotator, save_hra_control

    pipe = StableDiffusionPipeline.from_pretrained(base, use_safetensors=True)
    generator = torch.Generator().manual_seed(seed)
    encoder = encoder_for(pipe, make_annotator("canny", {"low": 50, "high": 100}), generator)
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj")
    pipe.unet = HRAModel(pipe.unet, HRAConfig(r=4, target_modules=targets), generator=generator)
    with torch.no_grad():
        for layer in pipe.unet.layers().values():
            columns = layer.hra_u["default"]
            columns += 0.3 * torch.randn(columns.shape, generator=generator)
        last = encoder.embedding.conv_out.weight
        last.copy_(3 * torch.randn(last.shape, generator=generator))
    return save_hra_control(pipe, Control(encoder=encoder, adapter_name="default"), folder)


@pytest.fixture(scope="session")
def control_folder(tiny_sd, tmp_path_factory) -> Path:
    """The folder of a control of the tiny model that follows edges."""
    return make_control(tiny_sd, tmp_path_factory.mktemp("control") / "canny")


@pytest.fixture(scope="session")
def other_control_folder(tiny_sd, tmp_path_factory) -> Path:
    """Another control for tiny_sd."""
    return make_control(tiny_sd, tmp_path_factory.mktemp("controls") / "other", seed=5)


@pytest.fixture(scope="session")
def subject_folder(tiny_sd, tmp_path_factory) -> Path:
    """An adapter of another kind: that of a control without its encoder."""
    folder = make_control(tiny_sd, tmp_path_factory.mktemp("control") / "subject", seed=1)
    shutil.rmtree(folder / "condition_encoder")
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder named dog with four small images of different shapes and formats."""
    return save_images(tmp_path / "dog")


def save_images(folder: Path) -> Path:
    """Make the folder with the images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"0.png": (40, 40), "1.jpg": (60, 40), "2.webp": (32, 50), "3.png": (20, 24)}.items():
        low = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        low.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def trained(tiny_sd, tmp_path_factory) -> Path:
    """The output folder of a short run on the tiny model, UNet and text encoder, with prior preservation."""
    from hra_diffusion.cli.main import main

    folder = tmp_path_factory.mktemp("trained")
    arguments = {
        "pretrained_model_name_or_path": tiny_sd,
        "instance_data_dir": save_images(folder / "dog"),
        "output_dir": folder / "run",
        "num_class_images": 3,
        "max_train_steps": 6,
        "learning_rate": 1.0,
        "num_inference_steps": 2,
        "num_validation_images": 1,
        "report_to": "none",
        "seed": 5,
    }
    flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    assert main(["train", *flags, "--train_text_encoder", "--with_prior_preservation"]) == 0
    return folder / "run"


def make_clip(folder, *, attributes=None, seed=0):
    """Save a CLIPModel of random weights that looks at 32 px; with `attributes`, as a judge that knows them."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from hra_diffusion.metrics.vocabulary import FILE, Vocabulary

    tokenizer = make_tokenizer()
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
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


BACKGROUNDS = {"red": "on a red background", "beach": "on the beach", "snow": "in the snow", "night": "at night"}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A folder with a tiny CLIP."""
    return make_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory) -> Path:
    """A folder with a tiny CLIP that knows four backgrounds by name, though it has learned nothing."""
    return make_clip(tmp_path_factory.mktemp("models") / "tiny-judge", attributes={"background": BACKGROUNDS})


class Net(nn.Module):
    """Two named blocks of linear layers around a normalization, and an output layer."""

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


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


@pytest.fixture
def tiny_clip():
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
    )


@pytest.fixture(scope="session")
def tiny_depth(tmp_path_factory):
    """A folder with a depth model of transformers, with random weights."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    folder = tmp_path_factory.mktemp("depth")
    sizes = {"depths": [1] * 4, "sr_ratios": [2, 1, 1, 1], "hidden_sizes": [8] * 4, "decoder_hidden_size": 8}
    torch.manual_seed(0)
    config = GLPNConfig(num_attention_heads=[1] * 4, mlp_ratios=[1] * 4, **sizes)
    GLPNForDepthEstimation(config).save_pretrained(folder)
    GLPNImageProcessor().save_pretrained(folder)
    return folder
