"""Shared fixtures: tiny models, folders of images, a short run, and a fast `python` command."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from tests import models

PROJECT = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers(config):
    """Return the number of workers: up to four processors for the whole suite, 0 for a part of it."""
    return min(os.cpu_count() or 1, 4) if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_collection_modifyitems(items):
    """Exclude slow tests from the coverage figure: tracing makes a test a third slower."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Return a function that runs ``python <arguments>`` in a folder, without the time for imports."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    outputs = [tmp_path_factory.mktemp("outputs") / name for name in ("stdout", "stderr")]
    program = [sys.executable, str(PROJECT / "tests" / "warm_python.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, env=environment, start_new_session=True, **pipes) as process:

        def run(*arguments: object, cwd: Path = PROJECT) -> subprocess.CompletedProcess:
            for path in outputs:
                path.write_bytes(b"")
            request = (str(cwd), [str(argument) for argument in arguments], *map(str, outputs))
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                exit_code = int(process.stdout.readline())
            except BaseException:  # After a time-out the next call would read this call's exit code.
                os.killpg(process.pid, signal.SIGKILL)
                raise
            return subprocess.CompletedProcess(arguments, exit_code, *(path.read_text("utf-8") for path in outputs))

        yield run
        process.stdin.close()


@pytest.fixture(scope="session")
def make_model():
    """Return the function that saves a tiny Stable Diffusion: see its arguments."""
    return models.save_stable_diffusion


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory) -> Path:
    """Return the folder of a tiny Stable Diffusion with noise prediction."""
    return models.save_stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_transformer(tiny_sd, tmp_path_factory):
    """Return a function from the name of a family, one of `models.TRANSFORMERS`, to the folder of a tiny model."""
    folder = tmp_path_factory.mktemp("transformers")
    return cache(lambda name: models.TRANSFORMERS[name](folder / name, tiny_sd))


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory) -> Path:
    """Return the folder of a tiny Stable Diffusion with v-prediction and zero terminal SNR."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd-v"
    return models.save_stable_diffusion(folder, prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_sd, tmp_path_factory) -> Path:
    """Return the folder of a tiny SDXL with two text encoders, 32 and 16 wide."""
    return models.save_stable_diffusion_xl(tmp_path_factory.mktemp("models") / "tiny-sdxl", tiny_sd)


@pytest.fixture(scope="session")
def control_folder(tiny_sd, tmp_path_factory) -> Path:
    """Return the folder of a control of edges for the tiny Stable Diffusion."""
    return models.save_control(tmp_path_factory.mktemp("control") / "canny", tiny_sd)


@pytest.fixture(scope="session")
def other_control_folder(tiny_sd, tmp_path_factory) -> Path:
    """Return the folder of another control of edges."""
    return models.save_control(tmp_path_factory.mktemp("controls") / "other", tiny_sd, seed=5)


@pytest.fixture(scope="session")
def subject_folder(tiny_sd, tmp_path_factory) -> Path:
    """Return the folder of an adapter without a condition encoder."""
    folder = models.save_control(tmp_path_factory.mktemp("control") / "subject", tiny_sd, seed=1)
    shutil.rmtree(folder / "condition_encoder")
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """Return a folder named dog with four small images of different shapes and formats."""
    return save_images(tmp_path / "dog")


def save_images(folder: Path) -> Path:
    """Write four images of different shapes and formats to a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"0.png": (40, 40), "1.jpg": (60, 40), "2.webp": (32, 50), "3.png": (20, 24)}.items():
        low = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        low.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def trained(tiny_sd, tmp_path_factory) -> Path:
    """Return the folder of a short run on the tiny model: UNet, text encoder and prior preservation."""
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


BACKGROUNDS = {"red": "on a red background", "beach": "on the beach", "snow": "in the snow", "night": "at night"}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """Return the folder of a tiny CLIP."""
    return models.save_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory) -> Path:
    """Return the folder of a tiny, untrained judge with four backgrounds in its vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "tiny-judge"
    return models.save_clip(folder, attributes={"background": BACKGROUNDS})


@pytest.fixture(scope="session")
def tiny_depth(tmp_path_factory) -> Path:
    """Return the folder of a tiny depth model of transformers."""
    return models.save_depth_model(tmp_path_factory.mktemp("depth"))


@pytest.fixture
def net() -> models.Net:
    torch.manual_seed(0)
    return models.Net()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny_unet():
    torch.manual_seed(0)
    return models.make_unet(block_out_channels=(8, 16), cross_attention_dim=16)


@pytest.fixture
def tiny_clip():
    torch.manual_seed(0)
    return models.make_text_encoder(width=16)
