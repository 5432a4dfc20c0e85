"""Training with torch.compile."""

from functools import partial

import pytest
import torch

from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [True])
def test_a_compiled_run_has_the_losses_of_an_uncompiled_one_up_to_rounding(
    config, tmp_path, monkeypatch, gradient_checkpointing
):
    # Tracing and gradients do not depend on the backend; inductor would compile C++ for minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    shorter = {"max_train_steps": 3, "train_batch_size": 1, "with_prior_preservation": False}
    shorter["gradient_checkpointing"] = gradient_checkpointing
    losses = {}
    for compiled in (False, True):
        values = {"torch_compile": compiled, "output_dir": tmp_path / str(compiled)}
        run = prepare_run(DreamBooth(with_values(config, shorter | values)))
        losses[compiled] = [record.loss for record in run.steps()]
        assert any(module._compiled_call_impl for module in run.pipe.unet.modules()) == compiled
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
