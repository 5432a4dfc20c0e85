"""PEFT's image benchmark with this project's trainer, and PEFT's own with the plug-in: protocol, configs, units."""

import json
import os
import subprocess
import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import HRAConfig as PeftHRAConfig
from peft import PeftConfig, get_peft_model
from PIL import Image

from hra_diffusion import HRAConfig
from tests.versions import transformer_families

PROJECT = Path(__file__).resolve().parents[1]
EXPERIMENT = PROJECT / "benchmarks" / "peft_experiments" / "hra" / "flux2-klein-radians"
PUBLISHED = {"num_trainable_params": 9_830_400, "num_total_params": 3_885_374_976}
"""Of PEFT's own result for HRA of rank 32 on FLUX.2-klein-base-4B."""


@pytest.fixture
def protocol(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import peft_protocol

    yield peft_protocol
    sys.modules.pop("peft_protocol", None)


def test_images_are_split_by_numpys_global_seed(protocol):
    images = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(20)]
    settings = {"instance_prompts": [str(number) for number in range(20)], "valid_size": 2, "test_size": 4}
    split = protocol.split_images(images, settings)
    np.random.seed(0)
    order = np.arange(20)
    np.random.shuffle(order)
    rows = (*split.train, *split.valid, *split.test)
    assert [int(row.caption) for row in rows] == [row.image.getpixel((0, 0))[0] for row in rows] == order.tolist()
    assert (len(split.train), len(split.valid), len(split.test)) == (14, 2, 4)
    with pytest.raises(ValueError, match="20 captions for 19 images"):
        protocol.split_images(images[:19], settings)


def test_training_images_are_squeezed_to_squares_with_their_captions(protocol, tmp_path):
    row = protocol.Captioned(Image.new("RGB", (30, 20), "red"), "sks cat")
    folder = protocol.write_training_images([row], tmp_path / "images", 16)
    with Image.open(folder / "00.png") as image:
        assert image.size == (16, 16)
    assert (folder / "00.txt").read_text("utf-8") == "sks cat"


def test_the_experiment_of_pefts_benchmark_is_a_config_of_both_libraries():
    theirs, ours = PeftConfig.from_pretrained(str(EXPERIMENT)), HRAConfig.from_pretrained(EXPERIMENT)
    assert isinstance(theirs, PeftHRAConfig)
    assert theirs.r == ours.r == 32
    assert theirs.target_modules == set(ours.target_modules)
    given = json.loads((EXPERIMENT / "adapter_config.json").read_text("utf-8"))
    assert given.keys() <= theirs.to_dict().keys()
    training = json.loads((EXPERIMENT / "training_params.json").read_text("utf-8"))
    torch.optim.AdamW([torch.zeros(1)], **training["optimizer_kwargs"])


def test_the_experiments_learning_rate_turns_a_layer_by_a_twentieth_of_a_radian():
    """‖ΔH‖_F after one AdamW step from PEFT's own start."""
    torch.manual_seed(0)
    settings = json.loads((EXPERIMENT / "training_params.json").read_text("utf-8"))["optimizer_kwargs"]
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(256, 8)), PeftHRAConfig(r=32, target_modules=["0"]))
    layer = model.base_model.model[0]
    columns = layer.hra_u["default"]
    before = layer.get_delta_weight("default")
    assert columns.square().mean().sqrt().item() == pytest.approx(sqrt(2 / (3 * 32)), rel=0.03)
    optimizer = torch.optim.AdamW([columns], **settings)
    (layer.get_delta_weight("default") * torch.randn(256, 256)).sum().backward()
    optimizer.step()
    turned = (layer.get_delta_weight("default") - before).norm().item()
    assert turned == pytest.approx(0.05, rel=0.15)


@pytest.mark.slow
@transformer_families
def test_the_adapted_layers_have_pefts_published_number_of_parameters():
    from diffusers import Flux2Transformer2DModel

    config = HRAConfig.from_pretrained(EXPERIMENT)
    sizes = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    with torch.device("meta"):
        model = Flux2Transformer2DModel(**sizes, guidance_embeds=False)
    layers = [m for name, m in model.named_modules() if name.endswith(tuple(f".{t}" for t in config.target_modules))]
    trained = config.r * sum(layer.in_features for layer in layers)
    total = trained + sum(weight.numel() for weight in model.parameters())
    assert {"num_trainable_params": trained, "num_total_params": total} == PUBLISHED


@pytest.mark.slow
@transformer_families
def test_the_benchmark_runs_and_prints_pefts_fields(tmp_path):
    flags = ["--smoke", "--output_dir", str(tmp_path), "--learning_rate", "0.5"]
    command = [sys.executable, "-W", "ignore", "benchmarks/peft_image.py", *flags]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    text, _, table = process.stdout.partition("\n}\n")
    assert json.loads(text[text.index("{\n") :] + "\n}") == result
    assert {*result["run_info"]} >= {"created_at", "total_time", "experiment_name", "train_config", "peft_config"}
    train = result["train_info"]
    first, last = train["metrics"]
    assert (first["step"], first["train samples"], last["step"], last["train samples"]) == (2, 4, 3, 6)
    assert -1 <= first["valid dino_similarity"] <= 1
    assert -1 <= last["test dino_similarity"] < 1
    assert 0 < last["drift"] <= 2
    assert 0 < train["train_time"] < result["run_info"]["total_time"] - first["eval time"]
    assert train["num_trainable_params"] * 4 < train["file_size"]
    assert f"| {train['num_trainable_params']:,} " in table
    assert len(list((tmp_path / "images").glob("*.png"))) == 3
    assert (tmp_path / "samples" / "01.png").is_file()


@pytest.mark.slow
def test_a_folder_without_pefts_benchmark_is_refused(tmp_path):
    command = [sys.executable, "benchmarks/peft_plugin_image.py", str(tmp_path)]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "has no method_comparison/image-gen/run.py" in process.stderr
