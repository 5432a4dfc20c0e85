import torch
from torch import nn

from emoji_world.fit import fit
from emoji_world.muon import orthogonalize


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    return layers.to(memory_format=torch.channels_last)


def loss_function(model: nn.Module):
    def compute_loss(generator: torch.Generator) -> torch.Tensor:
        batch = torch.randn(4, 3, 8, 8, generator=generator)
        return (model(batch) - batch.flip(1)).square().mean()

    return compute_loss


def train(checkpoint, steps: int, stop: int | None = None) -> nn.Module:
    model = network()
    for record in fit(
        {"m": model}, loss_function(model), steps=steps, learning_rate=1e-2, checkpoint=checkpoint, save_every=5
    ):
        if record.step == stop:
            break
    return model


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole.safetensors", 20)
    train(tmp_path / "parts.safetensors", 20, stop=13)
    resumed = train(tmp_path / "parts.safetensors", 20)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_training_halves_the_loss(tmp_path):
    model = network()
    records = list(
        fit({"m": model}, loss_function(model), steps=150, learning_rate=1e-2, checkpoint=tmp_path / "c.safetensors")
    )
    assert records[-1].loss < 0.5 * records[0].loss


def test_orthogonalized_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((8, 30), (30, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3
