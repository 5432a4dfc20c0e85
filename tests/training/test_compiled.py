"""A compiled denoiser trains as the plain one does."""

from functools import partial

import pytest
import torch

from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_compiled_run_has_the_losses_of_the_plain_one_to_rounding(
    config, tmp_path, monkeypatch, gradient_checkpointing
):
    # Tracing and its gradients are as for any backend; inductor's C++ for a CPU would take minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    shorter = {"max_train_steps": 3, "train_batch_size": 1, "with_prior_preservation": False}
    shorter["gradient_checkpointing"] = gradient_checkpointing
    losses = {}
    for wanted in (False, True):
        values = {"torch_compile": wanted, "output_dir": tmp_path / str(wanted)}
        run = DreamBooth(with_values(config, shorter | values))
        losses[wanted] = [record.loss for record in run.steps()]
        assert any(module._compiled_call_impl for module in run.pipe.unet.modules()) == wanted
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
