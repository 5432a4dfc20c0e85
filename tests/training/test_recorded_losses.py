"""The first losses of each Stable Diffusion are those of the version before the families shared latents and prompts."""

import pytest

from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run
from tests.versions import random_weights_of_transformers_5

pytestmark = random_weights_of_transformers_5

LOSSES = {
    "tiny_sd": [1.0375568866729736, 1.0809569358825684, 1.0928804874420166],
    "tiny_sdxl": [0.9926308393478394, 1.1232179403305054, 1.1655383110046387],
    "tiny_sd3": [1.1059069633483887, 1.3175333738327026, 1.292389154434204],
}
"""Recorded with torch 2.13 on a CPU; other versions of torch round differently."""


@pytest.mark.parametrize("model", LOSSES)
@pytest.mark.usefixtures("fresh_accelerate")
def test_losses_are_those_recorded_before_the_families_shared_a_seam(request, model, images, tmp_path):
    values = {
        "pretrained_model_name_or_path": str(request.getfixturevalue(model)),
        "instance_data_dir": images,
        "instance_prompt": "a photo of a sks dog",
        "output_dir": tmp_path / "run",
        "with_prior_preservation": False,
        "aspect_ratio_buckets": True,
        "train_batch_size": 2,
        "learning_rate": 0.5,
        "max_train_steps": 3,
        "report_to": "none",
    }
    run = prepare_run(DreamBooth(with_values(DreamBoothConfig(), values)))
    assert [record.loss for record in run.steps()] == pytest.approx(LOSSES[model], rel=1e-4)
