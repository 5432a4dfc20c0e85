"""inspect: the contents of an adapter, in numbers of its tensors."""

import math

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.cli.inspect import InspectConfig, describe_adapter
from hra_diffusion.cli.main import main
from hra_diffusion.formats.contents import read_components


def save(folder, angle: float) -> None:
    """Save an adapter with one layer, which rotates one plane by an angle."""
    model = HRAModel(nn.Sequential(nn.Linear(6, 5)), HRAConfig(r=2, target_modules=["0"]))
    half = angle / 2
    columns = torch.zeros(6, 2)
    columns[0], columns[1] = torch.tensor([1.0, math.cos(half)]), torch.tensor([0.0, math.sin(half)])
    with torch.no_grad():
        next(weight for weight in model.parameters() if weight.requires_grad).copy_(columns)
    model.save_pretrained(folder)


@pytest.mark.parametrize("degrees", [0, 30, 90, 170])
def test_the_angle_is_the_rotation_angle(tmp_path, degrees):
    save(tmp_path / "unet", math.radians(degrees))
    (component,) = read_components(tmp_path)
    (layer,) = component.layers
    assert (component.name, component.config.r, component.parameters) == ("unet", 2, 12)
    assert (layer.name, layer.shape) == ("0", (6, 2))
    assert layer.angle == pytest.approx(degrees, abs=1e-3)


def test_inspect_prints_a_run_with_its_settings(trained, tiny_sd, capsys):
    assert main(["inspect", str(trained)]) == 0
    output = capsys.readouterr().out
    assert f"base model  {tiny_sd}" in output
    assert "unet: rank 8, 32 layers, 5,888 parameters" in output
    assert "text_encoder: rank 8, 8 layers, 2,048 parameters" in output
    assert "  max_train_steps = 6\n" in output
    assert "rank = 8" not in output
    assert output.count("°  ") == 40


@pytest.mark.parametrize("part", ["adapter", "adapter/unet", "checkpoint-6"])
def test_adapters_components_and_checkpoints_can_be_inspected(trained, part):
    lines = list(describe_adapter(InspectConfig(adapter=trained / part, layers=False)))
    assert any(line.startswith("unet: rank 8") for line in lines)
    assert not any("attn1.to_q" in line for line in lines if line.startswith("  "))


def test_a_folder_without_an_adapter_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no adapter in" in capsys.readouterr().err
