"""Convolutions have their channels last while they train, and not while they draw."""

import pytest
import torch

from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.devices.memory_format import set_memory_format
from hra_diffusion.training.dreambooth import DreamBooth


def kernel_of(run: DreamBooth) -> torch.Tensor:
    return run.pipe.unet.down_blocks[0].resnets[0].conv1.weight


def has_channels_last(kernel: torch.Tensor) -> bool:
    return not kernel.is_contiguous() and kernel.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("width", "changes"), [(4, True), (1300, False)])
def test_large_kernels_stay_as_they_are_on_a_cpu(width, changes):
    convolution = torch.nn.Conv2d(width, 4 * width, 3, device="meta").to_empty(device="cpu")
    set_memory_format(convolution, torch.channels_last)
    assert has_channels_last(convolution.weight) == changes


def test_layouts_come_and_go_and_values_stay(config, monkeypatch):
    run = DreamBooth(with_values(config, {"with_prior_preservation": False, "max_train_steps": 2}))
    before = kernel_of(run).detach().clone()
    seen: list[bool] = []
    forward = run.pipe.unet.model.forward
    watched = lambda *args, **kwargs: (seen.append(has_channels_last(kernel_of(run))), forward(*args, **kwargs))[1]  # noqa: E731
    monkeypatch.setattr(run.pipe.unet.model, "forward", watched)
    for _ in run.steps():
        assert seen.pop()
        list(run.draw_before_after())
        assert not any(seen)
        seen.clear()
        assert has_channels_last(kernel_of(run))
    run.save()
    assert kernel_of(run).is_contiguous()
    assert torch.equal(kernel_of(run), before)
