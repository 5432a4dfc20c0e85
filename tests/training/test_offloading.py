"""Offloading: models are on the device only in the phases of a run that call them."""

from types import SimpleNamespace

import accelerate.hooks
import pytest
import torch
from accelerate import DistributedType
from torch import nn

from hra_diffusion.pipelines import load_pipeline
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.devices.offloading import finish_training, on_device, other_models, ready_to_generate
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run

GPU = torch.device("cuda", 0)


class RecordingModule(nn.Module):
    """A module that records the devices it is moved to."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def to(self, device):
        self.devices.append(str(device))
        return self


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Pretend that models move to a GPU; returns the set of models on it, by class."""
    present: set[str] = set()
    move = nn.Module.to

    def pretended(module, *args, **kwargs):
        device = args[0] if args and isinstance(args[0], (str, torch.device, int)) else kwargs.get("device")
        if device is None:
            return move(module, *args, **kwargs)
        (present.discard if str(device) == "cpu" else present.add)(type(module).__name__)
        return module

    monkeypatch.setattr(nn.Module, "to", pretended)
    monkeypatch.setattr(accelerate.hooks, "send_to_device", lambda tensors, *_, **__: tensors)
    return present


@pytest.mark.parametrize("trained", [False, True])
def test_models_that_only_encode_have_no_part_in_the_steps(config, trained):
    settings = {"train_text_encoder": trained, "with_prior_preservation": False, "max_train_steps": 1}
    run = prepare_run(DreamBooth(with_values(config, settings)))
    others = other_models(run.pipe, [run.start().trainer.loss])
    assert run.pipe.unet not in others
    assert others == [run.pipe.vae] if trained else {*others} == {run.pipe.vae, run.pipe.text_encoder}


def test_models_are_on_the_device_within_the_block_only():
    model = RecordingModule()
    with on_device([model], GPU):
        assert model.devices == ["cuda:0"]
    assert model.devices == ["cuda:0", "cpu"]
    with pytest.raises(KeyError), on_device([model], torch.device("mps")):
        raise KeyError
    assert model.devices[2:] == ["mps", "cpu"]


@pytest.mark.parametrize("family", ["tiny_sd", "tiny_sd3"])
def test_only_the_encoding_models_are_on_the_device_while_they_encode(config, family, request, monkeypatch):
    folder = request.getfixturevalue(family)
    values = {"pretrained_model_name_or_path": str(folder), "train_text_encoder": False}
    run = prepare_run(DreamBooth(with_values(config, values | {"with_prior_preservation": False, "resolution": 32})))
    present: list[type] = []
    seen: list[tuple[str, ...]] = []

    def recorded(models, device):
        present[:] = [type(model).__name__ for model in models]
        return on_device(models, device)

    monkeypatch.setattr("hra_diffusion.training.data.sources.on_device", recorded)
    text_encoders = [part for name, part in run.pipe.components.items() if "text_encoder" in name]
    for model in (run.pipe.vae.encoder, *text_encoders):
        model.register_forward_pre_hook(lambda *_: seen.append(tuple(present)))
    run.build_trainer(Cache(None))
    prompts = {
        "tiny_sd": {("CLIPTextModel",)},
        "tiny_sd3": {("CLIPTextModelWithProjection",) * 2, ("T5EncoderModel",)},
    }
    assert set(seen) == {("AutoencoderKL",), *prompts[family]}


def test_models_take_turns_on_a_gpu_to_generate(tiny_sd, pretended_gpu):
    pipe = load_pipeline(str(tiny_sd))
    accelerator = SimpleNamespace(device=GPU, distributed_type=DistributedType.NO)
    trained = [pipe.unet.to(GPU)]
    with ready_to_generate(pipe, accelerator, trained):
        assert not pretended_gpu
        pipe.text_encoder(torch.zeros(1, 4, dtype=torch.long))
        assert pretended_gpu == {"CLIPTextModel"}
        # Each model's hook first moves the model before it in the pipeline to the CPU.
        assert pipe.unet._hf_hook.prev_module_hook.model is pipe.text_encoder
        assert pipe.vae._hf_hook.prev_module_hook.model is pipe.unet
    assert pretended_gpu == {"UNet2DConditionModel"}
    assert not hasattr(pipe.text_encoder, "_hf_hook")
    finish_training(pipe, accelerator, trained)
    assert not pretended_gpu
    assert pipe.unet._hf_hook.execution_device == GPU


def test_all_models_are_on_each_of_several_gpus_to_generate(tiny_sd, pretended_gpu):
    pipe = load_pipeline(str(tiny_sd))
    accelerator = SimpleNamespace(device=GPU, distributed_type=DistributedType.MULTI_GPU)
    trained = [pipe.unet.to(GPU)]
    with ready_to_generate(pipe, accelerator, trained):
        assert {"UNet2DConditionModel", "CLIPTextModel", "AutoencoderKL"} <= pretended_gpu
    assert pretended_gpu == {"UNet2DConditionModel"}
