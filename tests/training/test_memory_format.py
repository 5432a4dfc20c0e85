"""Convolutions are channels-last in training, and contiguous when they generate images."""

import pytest
import torch

from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.memory_format import set_memory_format
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run


def kernel_of(run: Run) -> torch.Tensor:
    return run.pipe.unet.down_blocks[0].resnets[0].conv1.weight


def has_channels_last(kernel: torch.Tensor) -> bool:
    return not kernel.is_contiguous() and kernel.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("width", "changes"), [(4, True), (1300, False)])
def test_large_convolutions_keep_their_memory_format_on_a_cpu(width, changes):
    convolution = torch.nn.Conv2d(width, 4 * width, 3, device="meta").to_empty(device="cpu")
    set_memory_format(convolution, torch.channels_last)
    assert has_channels_last(convolution.weight) == changes


def test_channels_last_while_training_and_contiguous_while_generating(config, monkeypatch):
    run = prepare_run(DreamBooth(with_values(config, {"with_prior_preservation": False, "max_train_steps": 2})))
    before = kernel_of(run).detach().clone()
    formats: list[bool] = []
    forward = run.pipe.unet.model.forward
    recorded = lambda *args, **kwargs: (formats.append(has_channels_last(kernel_of(run))), forward(*args, **kwargs))[1]  # noqa: E731
    monkeypatch.setattr(run.pipe.unet.model, "forward", recorded)
    for _ in run.steps():
        assert formats.pop()
        list(run.generate_before_after())
        assert not any(formats)
        formats.clear()
        assert has_channels_last(kernel_of(run))
    run.save()
    assert kernel_of(run).is_contiguous()
    assert torch.equal(kernel_of(run), before)
