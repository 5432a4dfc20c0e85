"""--use_magnitude, --rank_pattern and --init_weights in a run."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hra_diffusion.cli.arguments import parse_flags
from hra_diffusion.errors import ConfigError, TargetError
from hra_diffusion.formats.peft import read_adapter
from hra_diffusion.householder.chain import unit_columns
from hra_diffusion.training.config import DreamBoothConfig, OptimizerConfig
from hra_diffusion.training.config.file import read_run, read_toml, to_toml, with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.optimizers import build_optimizer
from hra_diffusion.training.prepare import prepare_run

SETTINGS = {
    "use_magnitude": True,
    "rank_pattern": {"to_v": 2, "q_proj": 6},
    "train_text_encoder": True,
    "init_weights": "gradient",
    "with_prior_preservation": False,
    "use_ema": True,
    "rank": 4,
}


def weights(run):
    return {name: weight.detach().clone() for name, weight in run.start().trainer.weights.items()}


def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path):
    config = with_values(
        config, SETTINGS | {"max_train_steps": 2, "checkpointing_steps": 1, "train_text_encoder": True}
    )
    whole = prepare_run(DreamBooth(config))
    list(whole.steps())
    last = weights(whole)
    ranks = {name: w.shape[1] for name, w in last.items() if w.dim() == 2}
    assert {r for name, r in ranks.items() if "to_v" in name} == {2}
    assert {r for name, r in ranks.items() if "to_q" in name} == {4}
    assert {r for name, r in ranks.items() if "q_proj" in name} == {6}
    magnitudes = [w for w in last.values() if w.dim() == 1]
    assert magnitudes
    assert all(w.abs().max() > 0 for w in magnitudes)
    resumed = prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": "checkpoint-1"})))
    list(resumed.steps())
    assert all(torch.equal(w, last[name]) for name, w in weights(resumed).items())
    settings, tensors = read_adapter(resumed.save() / "unet")
    assert settings.use_magnitude
    assert settings.rank_pattern == {"to_v": 2}
    assert any(name.endswith("hra_log_magnitude") for name in tensors)
    assert read_run(config.run.output_dir, DreamBoothConfig()).adapter.rank_pattern == SETTINGS["rank_pattern"]


def test_the_start_from_a_gradient_is_the_base_model_and_the_same_in_every_run(config, tmp_path):
    starts = []
    for kind in ("gradient", "gradient", "random"):
        settings = SETTINGS | {"init_weights": kind, "output_dir": tmp_path / kind, "ema_decay": 0.5}
        run = prepare_run(DreamBooth(with_values(config, settings)))
        starts.append(weights(run))
        trainer = run.start().trainer
        assert all(torch.equal(trainer.ema.weights[name], w) for name, w in starts[-1].items())
        assert trainer.global_step == 0
    columns = [name for name, w in starts[0].items() if w.dim() == 2]
    for name in columns:
        assert torch.equal(starts[0][name], starts[1][name])
        assert not torch.allclose(starts[0][name], starts[2][name])
        u = unit_columns(starts[0][name])
        assert torch.equal(u[:, ::2], u[:, 1::2])


def test_settings_that_contradict_each_other_are_named(config):
    for other, flag in [({"optimizer": "prodigy"}, "prodigy"), ({"slot": "1/2"}, "--slot")]:
        with pytest.raises(ConfigError, match=flag):
            with_values(config, SETTINGS | other)
    with pytest.raises(ConfigError, match="init_weights"):
        with_values(config, {"init_weights": "gradient", "orthogonal_to": ("x",)})
    with pytest.raises(ConfigError, match="init_adapter"):
        with_values(config, {"init_weights": "gradient", "init_adapter": "x"})
    with pytest.raises(TargetError, match="'nothing'"):
        prepare_run(DreamBooth(with_values(config, {"rank_pattern": {"to_q": 2, "nothing": 2}})))


def test_ranks_by_layer_are_read_from_the_command_line_and_from_toml(tmp_path, capsys):
    def parsed(text):
        return parse_flags(DreamBoothConfig, ["--rank_pattern", text], prog="train", description="", usual=["rank"])

    assert parsed('{"to_v": 16, "a.b": 2}') == {"rank_pattern": {"to_v": 16, "a.b": 2}}
    for wrong in ('{"to_v": "x"}', "to_v", "[1]"):
        with pytest.raises(SystemExit):
            parsed(wrong)
    config = replace(
        DreamBoothConfig(), adapter=replace(DreamBoothConfig().adapter, rank_pattern={"to_v": 16, "a.b": 2})
    )
    path = Path(tmp_path / "config.toml")
    path.write_text(to_toml(config), "utf-8")
    assert read_toml(path, DreamBoothConfig()) == config
    path.write_text('[adapter.rank_pattern]\nto_v = "many"\n', "utf-8")
    with pytest.raises(ConfigError, match="a table of whole numbers"):
        read_toml(path, DreamBoothConfig())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_step_changes_magnitudes_by_the_rate_over_the_root_of_the_inputs(optimizer):
    from hra_diffusion import HRAConfig, HRAModel
    from tests.models import Net

    model = HRAModel(Net(), HRAConfig(r=4, target_modules=["out"], use_magnitude=True))
    layers = model.adapted_layers().values()
    made = build_optimizer({"unet": model}, {"unet": 0.02}, OptimizerConfig(optimizer=optimizer))
    model(torch.randn(3, 12)).square().sum().backward()
    made.step()
    for layer in layers:
        steps = layer.magnitudes["default"].detach().abs()
        size = 0.02 / math.sqrt(8)
        assert steps.mean().item() == pytest.approx(size, rel=0.5)
        assert torch.allclose(layer.columns["default"].norm(dim=0), torch.full((4,), math.sqrt(8.0)))
