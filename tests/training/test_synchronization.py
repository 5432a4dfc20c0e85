"""A step does not wait for the device: no operation of it has a result that Python, or a shape, depends on.

On a GPU such an operation waits until everything before it is computed. Here it is counted on the CPU.
"""

import json
import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hra_diffusion.errors import DivergedError
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.controlnet import ControlNet
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop import copies, steps
from hra_diffusion.training.outputs.checkpoint import checkpoints
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run
from tests.training.test_not_finite import broken_after

WAITING = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),  # a number for Python
    *("nonzero", "nonzero_static", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive"),
    *("repeat_interleave", "bincount", "lift_fresh"),  # the last: a tensor of Python's numbers, copied to the device
}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.counts[name] += name in WAITING or by_mask
        return func(*args, **(kwargs or {}))


def waits_of_a_step(run: Run) -> Counter:
    """Count in the second step: the first fills caches."""
    trainer = run.start().trainer
    trainer.batch_at = [trainer.batch_at(index) for index in range(4)].__getitem__  # on the CPU, before the copy
    records = trainer.steps(2)
    next(records)
    with Waits() as waits:
        next(records)
    return +waits.counts


SETTINGS = {
    "plain": {"with_prior_preservation": False, "train_text_encoder": False},
    "accumulated": {"with_prior_preservation": False, "train_text_encoder": False, "gradient_accumulation_steps": 2},
    "text encoder and prior": {"prior_target": "base", "caption_dropout_rate": 0.1},
    "validation": {"validation_split": 0.25, "validate_every_n_steps": 1, "with_prior_preservation": False},
    "huber": {"loss_type": "huber", "with_prior_preservation": False, "train_text_encoder": False},
    "ema and weights": {"use_ema": True, "snr_gamma": 5.0, "noise_offset": 0.1, "input_perturbation": 0.1},
    "penalty": {"orthogonality_weight": 0.001, "with_prior_preservation": False},
    "schedule-free": {"optimizer": "schedule_free", "with_prior_preservation": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_of_a_subject_does_not_wait_for_the_device(config, name):
    run = prepare_run(DreamBooth(with_values(config, SETTINGS[name])))
    assert not waits_of_a_step(run)


def test_a_step_of_a_control_does_not_wait_for_the_device(control_config):
    assert not waits_of_a_step(prepare_run(ControlNet(control_config)))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool(x[0]),
        lambda x: x.nonzero(),
        lambda x: x.unique(dim=0),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([0, 1], device=x.device),
    ],
)
def test_operations_that_wait_are_counted(wait):
    with Waits() as waits:
        wait(torch.arange(3.0))
    assert +waits.counts


@pytest.fixture
def ahead(monkeypatch):
    """Treat the CPU as a device that computes while Python goes on; returns a list that grows with each read."""
    reads = []

    class Numbers(copies.CopiedNumbers):
        def read(self):
            reads.append(len(reads))
            return super().read()

    monkeypatch.setattr(steps, "COMPUTES_AHEAD", ("cpu",))
    monkeypatch.setattr(steps, "CopiedNumbers", Numbers)
    return reads


def lines(run: Run) -> list[int]:
    return [json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_numbers_are_read_one_step_late_and_at_once_for_a_checkpoint(config, ahead):
    values = {"with_prior_preservation": False, "max_train_steps": 5, "checkpointing_steps": 3}
    run = prepare_run(DreamBooth(with_values(config, values)))
    reported, logged = [], []
    for _ in run.steps(reported.append):
        logged.append(lines(run))
        assert [earlier.step for earlier in reported] == logged[-1]
        assert len(ahead) == len(logged[-1])
    assert logged == [[], [1], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5]]


def test_a_number_that_is_used_is_read_and_logs_equal_those_read_at_once(config, ahead, tmp_path, monkeypatch):
    values = {"with_prior_preservation": False, "checkpointing_steps": 10, "orthogonality_weight": 0.01}
    late = prepare_run(DreamBooth(with_values(config, values)))
    for record in late.steps():
        assert record.penalty > 0
        assert len(ahead) == record.step
    monkeypatch.undo()
    at_once = prepare_run(DreamBooth(with_values(config, values | {"output_dir": tmp_path / "again"})))
    list(at_once.steps())
    assert (late.folder / "log.jsonl").read_bytes() == (at_once.folder / "log.jsonl").read_bytes()


def test_a_run_left_between_checkpoints_logs_all_its_steps_and_saves_them(config, ahead):
    run = prepare_run(DreamBooth(with_values(config, {"with_prior_preservation": False})))
    for record in run.steps():
        if record.step == 2:
            break
    assert lines(run) == [1, 2]
    checkpoint = run.save_checkpoint()
    assert (checkpoint / "log.jsonl").read_bytes() == (run.folder / "log.jsonl").read_bytes()


@pytest.mark.parametrize("every", [1, 2, 100])
def test_a_diverged_step_is_named_and_never_saved_though_it_is_noticed_late(config, ahead, every):
    values = {"with_prior_preservation": False, "checkpointing_steps": every, "max_train_steps": 6}
    run = prepare_run(DreamBooth(with_values(config, values)))
    with pytest.raises(DivergedError, match="of step 4 is nan"):
        broken_after(run, 3, math.nan)
    assert lines(run) == [1, 2, 3]
    assert all(int(path.name.partition("-")[2]) <= 3 for path in checkpoints(run.folder))


def test_a_diverged_step_is_noticed_before_its_checkpoint_or_its_validation_images(config, ahead):
    run = prepare_run(DreamBooth(with_values(config, {"with_prior_preservation": False})))
    records = run.steps()
    next(records)
    trainer = run.start().trainer
    kept = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    next(iter(trainer.weights.values())).data.view(-1)[0] = float("nan")
    next(records)
    with torch.no_grad():  # the weights alone do not show it
        for name, weight in trainer.weights.items():
            weight.copy_(kept[name])
    for use in (run.save_checkpoint, run.save, lambda: list(run.generate_validation())):
        with pytest.raises(DivergedError, match="The loss of step 2 is nan"):
            use()
    assert not checkpoints(run.folder)
    assert not (run.folder / "adapter").exists()
