"""The settings of a short run on the tiny model, a reset of accelerate's state, and a tiny Stable Diffusion 3."""

import pytest
from PIL import Image, ImageDraw

from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from tests import models
from tests.accelerate_state import reset_accelerate


@pytest.fixture
def fresh_accelerate():
    """Reset accelerate's state before a test, for tests of other folders leave one, and after it."""
    reset_accelerate()
    yield
    reset_accelerate()


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


@pytest.fixture(scope="session")
def tiny_sd3(tiny_sd, tmp_path_factory):
    """Return the folder of a tiny Stable Diffusion 3 with T5."""
    return models.save_stable_diffusion_3(tmp_path_factory.mktemp("models") / "tiny-sd3", tiny_sd)


@pytest.fixture(scope="session")
def tiny_z_image(tiny_transformer):
    """Return the folder of a tiny Z-Image."""
    return tiny_transformer("z-image")


@pytest.fixture(scope="session")
def tiny_flux_1(tiny_transformer):
    """Return the folder of a tiny FLUX.1 dev."""
    return tiny_transformer("flux-1")


@pytest.fixture(scope="session")
def tiny_flux_1_kontext(tiny_sd, tmp_path_factory):
    """Return the folder of a tiny FLUX.1 Kontext."""
    return models.save_flux_1(tmp_path_factory.mktemp("models") / "tiny-flux-1-kontext", tiny_sd, kontext=True)


@pytest.fixture(scope="session")
def tiny_chroma(tiny_transformer):
    """Return the folder of a tiny Chroma."""
    return tiny_transformer("chroma")


@pytest.fixture(scope="session")
def tiny_flux_2_klein(tiny_transformer):
    """Return the folder of a tiny FLUX.2 klein."""
    return tiny_transformer("flux-2-klein")


@pytest.fixture(scope="session")
def tiny_flux_2_dev(tiny_transformer):
    """Return the folder of a tiny FLUX.2 dev."""
    return tiny_transformer("flux-2-dev")


@pytest.fixture(scope="session")
def tiny_qwen_image(tiny_transformer):
    """Return the folder of a tiny Qwen-Image."""
    return tiny_transformer("qwen-image")


@pytest.fixture
def scenes(tmp_path):
    """A folder of five captioned images of boxes."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for at in range(5):
        image = Image.new("RGB", (48, 32), "white")
        ImageDraw.Draw(image).rectangle((4 + 4 * at, 6, 16 + 4 * at, 20 + at), fill=(40 * at, 0, 255))
        image.save(folder / f"{at}.png")
        (folder / f"{at}.txt").write_text(f"box {at}")
    return folder


@pytest.fixture
def control_config(tiny_sd, scenes, tmp_path, fresh_accelerate):
    values = {
        "pretrained_model_name_or_path": str(tiny_sd),
        "train_data_dir": scenes,
        "output_dir": tmp_path / "run",
        "random_flip": True,
        "color_jitter": 0.1,
        "max_train_steps": 4,
        "train_batch_size": 2,
        "learning_rate": 0.5,
        "num_inference_steps": 2,
        "num_validation_images": 2,
        "checkpointing_steps": 2,
        "report_to": "none",
        "proportion_empty_prompts": 0.2,
        "proportion_empty_conditions": 0.2,
        "proportion_empty_both": 0.2,
    }
    return with_values(ControlNetConfig(), values)
