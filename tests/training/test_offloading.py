"""Offloading: models without a part in training steps are on the CPU, and on the device to generate images."""

import pytest
import torch
from torch import nn

from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.offloading import offloadable_models, on_device
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run


class RecordingModule(nn.Module):
    """A module that records the devices it is moved to."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def to(self, device):
        self.devices.append(str(device))
        return self


@pytest.mark.parametrize("trained", [False, True])
def test_models_that_only_encode_are_offloadable(config, trained):
    settings = {"train_text_encoder": trained, "with_prior_preservation": False, "max_train_steps": 1}
    run = prepare_run(DreamBooth(with_values(config, settings)))
    offloadable = offloadable_models(run.pipe, run.start().trainer.loss)
    assert run.pipe.unet not in offloadable
    assert offloadable == [run.pipe.vae] if trained else {*offloadable} == {run.pipe.vae, run.pipe.text_encoder}


def test_models_are_on_the_device_within_the_block_only():
    model = RecordingModule()
    with on_device([model], torch.device("cuda", 0)):
        assert model.devices == ["cuda:0"]
    assert model.devices == ["cuda:0", "cpu"]
    with pytest.raises(KeyError), on_device([model], torch.device("mps")):
        raise KeyError
    assert model.devices[2:] == ["mps", "cpu"]
