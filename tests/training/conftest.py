"""The settings of a short run on the tiny model, a reset of accelerate's state, and a tiny Stable Diffusion 3."""

import pytest
from accelerate.state import AcceleratorState, GradientState

from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from tests import models


@pytest.fixture
def fresh_accelerate():
    """Reset accelerate's state after a test: a process has one state, and runs differ in precision."""
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


@pytest.fixture(scope="session")
def tiny_sd3(tiny_sd, tmp_path_factory):
    """Return the folder of a tiny Stable Diffusion 3 with T5."""
    return models.save_stable_diffusion_3(tmp_path_factory.mktemp("models") / "tiny-sd3", tiny_sd)
