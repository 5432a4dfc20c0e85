"""Rotation angles of a run: means over its components and their groups of layers."""

import json
import math

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.householder.geodesic import rotation_angles
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.rotation import RotationAngles, layer_groups
from hra_diffusion.training.prepare import prepare_run


def adapted(apply_gs: bool = False) -> HRAModel:
    model = nn.ModuleDict({"down_blocks": nn.Linear(8, 5), "mid_block": nn.Linear(8, 3), "up_blocks": nn.Linear(6, 6)})
    targets = ["down_blocks", "mid_block", "up_blocks"]
    return HRAModel(model, HRAConfig(r=4, target_modules=targets, init_weights=False, apply_GS=apply_gs))


def root_mean_square(chains) -> float:
    """Return the mean angle in degrees from the angles of each plane."""
    sines = torch.cat([(rotation_angles(chain)[::2] / 2).sin().square()[: chain.shape[1] // 2] for chain in chains])
    return math.degrees(2 * math.asin(sines.mean().sqrt().item()))


@pytest.mark.parametrize("apply_gs", [False, True])
def test_angles_are_means_over_the_planes_of_each_component_and_group(apply_gs):
    model = adapted(apply_gs)
    angles = RotationAngles({"unet": model})
    assert angles.names == ["unet", "unet.down_blocks", "unet.mid_block", "unet.up_blocks"]
    chains = {name: layer.columns.chain("default").detach() for name, layer in model.adapted_layers().items()}
    expected = [root_mean_square(chains.values()), *(root_mean_square([chain]) for chain in chains.values())]
    assert angles.degrees().tolist() == pytest.approx(expected, abs=0.05)


def test_angles_follow_the_columns():
    model = adapted()
    angles = RotationAngles({"unet": model})
    before = angles.degrees()
    with torch.no_grad():
        model.adapted_layers()["mid_block"].hra_u["default"].copy_(torch.eye(8, 1).repeat(1, 4))  # the identity
    after = dict(zip(angles.names, angles.degrees().tolist(), strict=True))
    assert after["unet.mid_block"] == pytest.approx(0, abs=0.1)
    assert after["unet.up_blocks"] == pytest.approx(before[3].item())


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["down_blocks.0.attn.to_q", "up_blocks.1.ff.net.2"], ["down_blocks", "up_blocks"]),
        (["layers.0.attention.to_q", "layers.1.feed_forward.w1"], ["attention", "feed_forward"]),
        (["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.mlp.fc1"], ["attention", "feed_forward"]),
        (["transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff_context.net.2"], ["attention", "feed_forward"]),
        (["transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"], ["", ""]),
    ],
)
def test_groups_are_stages_or_attention_and_feed_forward(names, groups):
    assert list(layer_groups(names).values()) == groups


def test_each_line_of_the_log_has_the_angles_after_its_step(config):
    run = prepare_run(DreamBooth(with_values(config, {"with_prior_preservation": False, "learning_rate": 0.2})))
    for _ in run.steps():
        pass
    lines = [json.loads(line)["angles"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert {"unet", "text_encoder", "unet.down_blocks", "unet.up_blocks"} <= lines[0].keys()
    assert 0 < lines[0]["unet"] < lines[-1]["unet"] < 180
    measured = run.start().trainer.angles
    assert lines[-1] == pytest.approx(dict(zip(measured.names, measured.degrees().tolist(), strict=True)))
