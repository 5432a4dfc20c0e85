"""What no step needs leaves the device while steps are taken, and is there again whenever something is drawn."""

import pytest
import torch
from torch import nn

from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.offloading import offloadable_models, on_device
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run


class Traveller(nn.Module):
    """Notes where it was sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def to(self, device):
        self.places.append(str(device))
        return self


@pytest.mark.parametrize("trained", [False, True])
def test_what_only_encodes_is_idle(config, trained):
    settings = {"train_text_encoder": trained, "with_prior_preservation": False, "max_train_steps": 1}
    run = prepare_run(DreamBooth(with_values(config, settings)))
    idle = offloadable_models(run.pipe, run.start().trainer.loss)
    assert run.pipe.unet not in idle
    assert idle == [run.pipe.vae] if trained else {*idle} == {run.pipe.vae, run.pipe.text_encoder}


def test_idle_models_come_for_the_length_of_a_block():
    model = Traveller()
    with on_device([model], torch.device("cuda", 0)):
        assert model.places == ["cuda:0"]
    assert model.places == ["cuda:0", "cpu"]
    with pytest.raises(KeyError), on_device([model], torch.device("mps")):
        raise KeyError
    assert model.places[2:] == ["mps", "cpu"]
