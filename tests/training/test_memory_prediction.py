"""Predicted memory equals that of the same computation with data; live bytes are those of tensors in use."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hra_diffusion.pipelines import load_pipeline
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.controlnet import ControlNet
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.devices.live_bytes import LiveBytes
from hra_diffusion.training.devices.memory_prediction import predict_memory
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run

PROJECT = Path(__file__).resolve().parents[2]


def predicted(run, trainer):
    """Return the predicted bytes of a run, by phase and component."""
    phases = predict_memory(run.task.denoiser(run.family), run.family, trainer.batch_at(0).inputs)
    return {(part.phase, part.component): part for part in phases}


def measured_step(run, trainer):
    """Return the peak of a step's live bytes, with the optimizer's two moments, and the launches."""
    model = trainer.loss
    live = LiveBytes()
    moments = [torch.empty_like(weight) for weight in trainer.weights.values() for _ in range(2)]
    live.include([*model.parameters(), *model.buffers(), *moments])
    with live:
        losses, _ = model(**trainer.batch_at(0).inputs)
        losses.mean().backward()
    return live


def test_live_bytes_are_those_of_tensors_in_use():
    live = LiveBytes()
    live.include([torch.zeros(1000)])
    kept = torch.zeros(250)
    assert live.include([kept, kept, kept[:3]]) == 1000
    live.peak = 0
    with live:
        doubled = kept * 2
        (doubled.view(25, 10) + 1).sum()
        del doubled
        kept + 1
    assert live.peak == 3000 + 4
    assert live.launches == 4
    assert live.include([]) == 1000


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_predicted_memory_of_a_step_is_that_of_a_step(config, trained, checkpointing):
    values = {"train_text_encoder": trained, "gradient_checkpointing": checkpointing, "with_prior_preservation": False}
    run = prepare_run(DreamBooth(with_values(config, values)))
    trainer = run.build_trainer(Cache(None))
    prediction, live = predicted(run, trainer)["train", "unet"], measured_step(run, trainer)
    assert prediction.peak == pytest.approx(live.peak, rel=0.03)
    assert prediction.launches == pytest.approx(live.launches, rel=0.05)  # a loss of fewer parts, in a short step


def test_the_predicted_memory_to_encode_and_to_generate_is_that_of_the_models(config):
    run = prepare_run(DreamBooth(with_values(config, {"with_prior_preservation": False})))
    trainer = run.build_trainer(Cache(None))
    prediction, latent = predicted(run, trainer), trainer.batch_at(0).inputs["latents"][:1]
    assert set(prediction) == {
        ("encode", "vae"),
        ("train", "unet"),
        ("validate", "text_encoder"),
        ("validate", "unet"),
        ("validate", "vae"),
    }
    pipe = load_pipeline(config.model.pretrained_model_name_or_path)
    live = LiveBytes()
    live.include([*pipe.vae.parameters(), *pipe.vae.buffers()])
    with live, torch.no_grad():
        pipe.vae.decode(latent)
    assert prediction["validate", "vae"].peak == pytest.approx(live.peak, rel=0.01)


def test_a_control_and_a_transformer_are_predicted(control_config, config, tiny_sd3):
    run = prepare_run(ControlNet(control_config))
    trainer = run.build_trainer(Cache(None))
    prediction = predicted(run, trainer)
    assert prediction["train", "unet"].peak == pytest.approx(measured_step(run, trainer).peak, rel=0.05)
    values = {"pretrained_model_name_or_path": str(tiny_sd3), "with_prior_preservation": False, "resolution": 32}
    run = prepare_run(DreamBooth(with_values(config, values)))
    prediction = predicted(run, run.build_trainer(Cache(None)))
    assert ("encode", "text_encoder_3") in prediction
    assert ("train", "transformer") in prediction


@pytest.mark.slow
def test_swapped_blocks_and_quantized_layers_need_less(config):
    pytest.importorskip("torchao")
    base = {"with_prior_preservation": False, "train_text_encoder": False, "gradient_checkpointing": True}
    sizes = []
    for changes in ({}, {"blocks_to_swap": 3}, {"quantization": "int8"}):
        run = prepare_run(DreamBooth(with_values(config, base | changes)))
        part = predicted(run, run.build_trainer(Cache(None)))["train", "unet"]
        sizes.append((part.weights, part.peak))
    assert all(sizes[i][kind] < sizes[0][kind] for i in (1, 2) for kind in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15-8gb", "sdxl-12gb", "flux2-klein-16gb"])  # of the others: benchmarks/memory.py
def test_a_config_needs_less_memory_than_its_name_says(name):
    name = f"subject-{name}"
    command = [sys.executable, "benchmarks/memory.py", "--only", name]
    printed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    row = re.compile(r"^\| (encode|train|validate) .*\| +([\d.]+) GB +\| +\d+ +\|$", re.MULTILINE)
    peaks = [(phase, float(size)) for phase, size in row.findall(printed)]
    assert len(peaks) >= 5
    largest = {phase: max(size for other, size in peaks if other == phase) for phase, _ in peaks}
    assert max(largest.values()) + 1 <= int(re.search(r"(\d+)gb$", name)[1])
    figures = re.findall(r"([\d.]+) GB", (PROJECT / "configs" / f"{name}.toml").read_text())
    assert f"{max(largest.values()):.1f}" in figures
    assert [f"{largest[phase]:.1f}" for phase in ("encode", "train", "validate")] == memory_table()[name]


def memory_table() -> dict[str, list[str]]:
    """Return the table of the guide, by config: GB of encoding, a step and validation."""
    page = (PROJECT / "docs" / "guides" / "memory.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)`.*? \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|", page, re.MULTILINE)
    return {name: figures for name, *figures in rows}


def test_the_guide_has_the_memory_of_every_config():
    table, named = memory_table(), set()
    for path in (PROJECT / "configs").glob("*.toml"):
        largest = max(map(float, table[path.stem]))
        figures = re.findall(r"([\d.]+) GB", path.read_text("utf-8"))
        if size := re.search(r"(\d+)gb$", path.stem):
            assert largest + 1 <= int(size[1])
            assert f"{largest:.1f}" in figures, path
            named.add(path.stem)
    assert len(named) >= 10


def test_half_precision_keeps_normalizations_in_float32(config):
    values = {"with_prior_preservation": False, "train_text_encoder": False, "mixed_precision": "bf16"}
    run = prepare_run(DreamBooth(with_values(config, values)))
    trainer = run.build_trainer(Cache(None))
    inputs = trainer.batch_at(0).inputs
    with_autocast, without = (
        predict_memory(run.task.denoiser(run.family), run.family, inputs, precision=precision)
        for precision in (torch.bfloat16, torch.float32)
    )
    peaks = [{(part.phase, part.component): part.peak for part in parts} for parts in (with_autocast, without)]
    assert peaks[0]["train", "unet"] > peaks[1]["train", "unet"]
    assert any(isinstance(module, (nn.GroupNorm, nn.LayerNorm)) for module in run.pipe.unet.modules())
