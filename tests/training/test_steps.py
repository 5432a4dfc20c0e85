"""The training loop: a generator with the steps of a plain loop, taken one at a time on request."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hra_diffusion.training.data.batches import Batch
from hra_diffusion.training.loop.steps import train
from tests.accelerate_state import reset_accelerate


@pytest.fixture
def make_accelerator():
    """Return a function that makes an Accelerator without the state shared in this process."""

    def make(**options):
        reset_accelerate()
        return Accelerator(cpu=True, **options)

    yield make
    reset_accelerate()


class Distance(nn.Module):
    """The squared distance of examples to a trainable point."""

    def __init__(self):
        super().__init__()
        self.point = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return (x - self.point).square().sum(1), 0.1 * self.point.sum()


def batch_at(index: int) -> Batch:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(index)) + 2
    return Batch(inputs={"x": x}, parts={"a": slice(0, 4), "b": slice(4, 6)}, weights={"a": 1.0, "b": 0.5})


def start(accelerator, steps, batch_at=batch_at, max_grad_norm=1.0, model=None):
    model = model or Distance()
    optimizer = torch.optim.SGD([{"params": model.parameters(), "component": "point", "lr_per_radian": 0.5}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 10)
    model, prepared = accelerator.prepare(model, optimizer)
    return model, train(accelerator, model, prepared, scheduler, batch_at, steps=steps, max_grad_norm=max_grad_norm)


def test_the_steps_equal_those_of_a_plain_loop(make_accelerator):
    model, records = start(make_accelerator(), steps=5)
    records = list(records)
    plain = Distance()
    for step, record in enumerate(records):
        batch = batch_at(step)
        losses, penalty = plain(batch.inputs["x"])
        loss = losses[:4].mean() + 0.5 * losses[4:].mean() + penalty
        (gradient,) = torch.autograd.grad(loss, [plain.point])
        rate = 0.1 * (1 - 0.09 * step)
        with torch.no_grad():
            plain.point -= rate * gradient / max(1.0, gradient.norm().item())
        assert record.step == step + 1
        assert record.loss == pytest.approx(loss.item(), rel=1e-5)
        assert record.losses == pytest.approx({"a": losses[:4].mean().item(), "b": losses[4:].mean().item()}, rel=1e-5)
        assert record.penalty == pytest.approx(penalty.item(), rel=1e-5)
        assert record.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-5)
        assert record.learning_rates == pytest.approx({"point": rate / 0.5})
    assert torch.allclose(model.point, plain.point, atol=1e-5)


def test_accumulated_batches_equal_one_large_batch(make_accelerator):
    def large(index: int) -> Batch:
        halves = [batch_at(2 * index), batch_at(2 * index + 1)]
        x = [half.inputs["x"][rows] for rows in (slice(0, 4), slice(4, 6)) for half in halves]
        return Batch(inputs={"x": torch.cat(x)}, parts={"a": slice(0, 8), "b": slice(8, 12)}, weights=halves[0].weights)

    one, records = start(make_accelerator(), steps=4, batch_at=large)
    whole = list(records)
    two, records = start(make_accelerator(gradient_accumulation_steps=2), steps=4)
    accumulated = list(records)
    assert torch.allclose(one.point, two.point, atol=1e-5)
    assert [record.loss for record in accumulated] == pytest.approx([record.loss for record in whole], rel=1e-5)
    assert [record.step for record in accumulated] == [1, 2, 3, 4]


def test_no_step_is_taken_before_its_record_is_requested(make_accelerator):
    requested = []
    _, records = start(make_accelerator(), steps=100, batch_at=lambda index: requested.append(index) or batch_at(index))
    assert requested == []
    next(records), next(records)
    records.close()
    assert requested == [0, 1]
