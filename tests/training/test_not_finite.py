"""A loss, gradient or weight that is not finite ends a run before anything of it is saved."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.cli.main import main
from hra_diffusion.errors import AdapterFileError, DivergedError
from hra_diffusion.formats.tokens import token_files
from hra_diffusion.training.config.file import to_toml, with_values
from hra_diffusion.training.controlnet import ControlNet
from hra_diffusion.training.data.batches import Batch
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.steps import train
from hra_diffusion.training.outputs.checkpoint import checkpoints
from hra_diffusion.training.prepare import prepare_run


def broken_after(run, step, value):
    """Break a trained weight of a run after a step."""
    for record in run.steps():
        if record.step == step:
            next(iter(run.start().trainer.weights.values())).data.view(-1)[0] = value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_subject_ends_at_the_first_loss_that_is_not_finite(config, value):
    values = {"with_prior_preservation": False, "checkpointing_steps": 1, "checkpoints_total_limit": 1}
    run = prepare_run(DreamBooth(with_values(config, values)))
    message = (
        r"The loss of step 3 is (nan|inf), at the learning rates .* of unet.*last good checkpoint is .*checkpoint-2;"
    )
    with pytest.raises(DivergedError, match=message.removesuffix(";")):
        broken_after(run, 2, value)
    assert [path.name for path in checkpoints(run.plan.folder)] == ["checkpoint-2"]
    assert not (run.plan.folder / "adapter").exists()


def test_a_mistyped_rate_of_a_control_exits_with_an_error_and_keeps_the_earlier_checkpoint(
    control_config, tmp_path, capsys
):
    prepared = with_values(control_config, {"checkpoints_total_limit": 1})
    list(prepare_run(ControlNet(prepared)).steps())
    folder = prepared.run.output_dir
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "checkpoint-" in str(path)}
    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(prepared))
    flags = [
        "--encoder_lr",
        "1e30",
        "--max_train_steps",
        "40",
        "--max_grad_norm",
        "1e30",
        "--checkpointing_steps",
        "1000",
    ]
    assert main(["train-control", "--config", str(settings), *flags]) == 2
    error = capsys.readouterr().err
    assert "not saved; this run has no checkpoint yet" in error
    assert "--encoder_lr" in error
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("use_ema", [False, True])
def test_weights_and_their_average_are_checked_before_they_are_saved(config, use_ema):
    values = {"with_prior_preservation": False, "use_ema": use_ema, "max_train_steps": 2}
    run = prepare_run(DreamBooth(with_values(config, values)))
    records = run.steps()
    next(records)
    trainer = run.start().trainer
    weights = trainer.ema.weights if use_ema else trainer.weights
    next(iter(weights.values())).data.view(-1)[0] = math.nan
    with pytest.raises(DivergedError, match="average of" if use_ema else "weights are not finite"):
        run.save_checkpoint()
    with pytest.raises(DivergedError):
        run.save()
    assert not checkpoints(run.plan.folder)
    assert not (run.plan.folder / "adapter").exists()


def steps_with_losses(losses, skipped):
    """Take steps whose losses are given, with a scaler that skips some of them."""
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": module.parameters(), "component": "unet", "lr_per_radian": 1.0}], lr=0.1)
    queue = iter(zip(losses, skipped, strict=True))

    class Accelerator(SimpleNamespace):
        def accumulate(self, _):
            from contextlib import nullcontext

            module.loss, self.skips = next(queue)
            return nullcontext()

        def backward(self, _): ...
        def clip_grad_norm_(self, *_):
            return torch.tensor(math.inf if self.skips else 1.0)  # a scaler skips steps with such gradients

        def reduce(self, tensor, _):
            return tensor

    accelerator = Accelerator(
        gradient_accumulation_steps=1, device="cpu", sync_gradients=True, distributed_type="NO", scaler=object()
    )
    module.forward = lambda: (torch.tensor([module.loss]), torch.tensor(0.0))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    batch = Batch(inputs={}, parts={"a": slice(0, 1)}, weights={"a": 1.0})
    return train(accelerator, module, optimizer, schedule, lambda _: batch, steps=len(losses), max_grad_norm=1.0)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_steps_that_fp16s_scaler_skips_are_allowed_for_a_while():
    losses = [math.inf] * 3 + [1.0] * 2
    assert len(list(steps_with_losses(losses, [True] * 3 + [False] * 2))) == 5
    with pytest.raises(DivergedError, match="step 21 is inf"):
        list(steps_with_losses([math.inf] * 30, [True] * 30))
    with pytest.raises(DivergedError, match="step 1 is inf"):
        list(steps_with_losses(losses, [False] * 5))


def test_an_adapter_that_is_not_finite_is_not_written(tmp_path):
    model = HRAModel(nn.Sequential(nn.Linear(8, 8)), HRAConfig(r=2, target_modules=["0"]))
    next(weight for weight in model.parameters() if weight.requires_grad).data[0] = math.nan
    with pytest.raises(AdapterFileError, match=r"adapter 'default' holds numbers that are not finite, in 0\.hra_u"):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(AdapterFileError, match="learned tokens"):
        token_files({"text_encoder": {"<sks>": torch.full((1, 2), math.inf)}})
