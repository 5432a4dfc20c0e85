"""A short run on the tiny model, and accelerate's state forgotten after each test that trains."""

import pytest
from accelerate.state import AcceleratorState, GradientState

from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config_file import with_values


@pytest.fixture
def fresh_accelerate():
    """Forget accelerate's state, which a process has once, so that each run may set its own precision."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def config(tiny_sd, pictures, tmp_path, fresh_accelerate):
    values = {
        "pretrained_model_name_or_path": str(tiny_sd),
        "instance_data_dir": pictures,
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
