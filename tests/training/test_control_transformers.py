"""Control runs on a tiny transformer: training, resuming, and generation and evaluation with the control."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hra_diffusion.cli.main import main
from hra_diffusion.control import make_annotator
from hra_diffusion.errors import ModelError
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.control import CONTROL_TARGETS
from hra_diffusion.training.config.file import read_toml, with_values
from hra_diffusion.training.controlnet import ControlNet
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.families import FAMILIES
from hra_diffusion.training.outputs.checkpoint import load_checkpoint
from hra_diffusion.training.prepare import prepare_run
from tests.versions import transformer_families

pytestmark = transformer_families

PARTS = {
    "transformer": "adapter/transformer/adapter_model.safetensors",
    "condition_encoder": "adapter/condition_encoder/diffusion_pytorch_model.safetensors",
}


@pytest.fixture
def klein_config(control_config, tiny_flux_2_klein):
    """The settings of a control's run of four steps on FLUX.2 klein."""
    values = {"pretrained_model_name_or_path": str(tiny_flux_2_klein), "num_validation_images": 1}
    return with_values(control_config, values | {"resolution": 32, "gradient_checkpointing": True})


def train(config):
    run = prepare_run(ControlNet(config))
    list(run.steps())
    run.save()
    return run


def test_the_first_prediction_is_the_bases_and_only_encoder_and_adapter_train(klein_config):
    run = prepare_run(ControlNet(klein_config))
    assert run.config.adapter.target_modules == FAMILIES["Flux2KleinPipeline"].default_targets
    base = {name: weight.clone() for name, weight in run.pipe.transformer.model.state_dict().items()}
    trainer = run.build_trainer(Cache(None))
    inputs = trainer.batch_at(0).inputs
    controlled = trainer.accelerator.unwrap_model(trainer.loss)
    with torch.no_grad():
        losses, _ = controlled(**inputs)
        others = {name: value for name, value in inputs.items() if name not in ("control", "control_kept")}
        denoiser, controlled.denoiser = controlled.denoiser, controlled.denoiser.denoiser
        adapted_losses, _ = controlled(**others)
        with run.pipe.transformer.disable_adapter():
            base_losses, _ = controlled(**others)
        controlled.denoiser = denoiser
    assert torch.equal(losses, adapted_losses)
    assert torch.allclose(losses, base_losses, atol=1e-5)
    before = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    for _ in trainer.steps(2):
        pass
    assert {name for name, weight in trainer.weights.items() if not torch.equal(weight, before[name])} == set(before)
    assert any("embedding" in name for name in before) and any("hra_u" in name for name in before)
    after = run.pipe.transformer.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in base.items() if "hra_" not in name)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(klein_config, tmp_path):
    whole = train(klein_config)
    again = with_values(klein_config, {"output_dir": tmp_path / "again", "resume_from_checkpoint": "latest"})
    shutil.copytree(whole.folder / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    resumed = train(again)
    assert resumed.plan.initial_global_step == 2
    states = [load_checkpoint(run.folder / "checkpoint-4").state["weights"] for run in (whole, resumed)]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    for path in PARTS.values():
        assert (whole.folder / path).read_bytes() == (resumed.folder / path).read_bytes()
    assert load_file(whole.folder / PARTS["condition_encoder"])["embedding.conv_out.weight"].any()


@pytest.mark.slow
def test_generate_reproduces_the_validation_image_with_and_without_guidance(klein_config, scenes, tmp_path):
    path = tmp_path / "condition.png"
    make_annotator("canny")(Image.open(scenes / "0.png").resize((32, 32))).save(path)
    given = {"validation_image": (path,), "validation_prompt": ("box",), "max_train_steps": 2, "random_flip": False}
    run = train(with_values(klein_config, given))
    assert run.config.validation.guidance_scale == 4.0
    ((_, _, expected),) = run.generate_validation()
    common = ["generate", "--prompt", "box", "--control", str(run.folder), "--image", str(path), "--annotated"]

    def generated(*flags: str) -> np.ndarray:
        assert main([*common, "--output_dir", str(tmp_path / "images"), *flags]) == 0
        with Image.open(tmp_path / "images" / image_name("box", 0)) as image:
            return np.asarray(image)

    assert np.array_equal(generated(), np.asarray(expected))
    assert not np.array_equal(generated("--control_strength", "0"), np.asarray(expected))
    assert generated("--height", "40", "--width", "24").shape == (40, 24, 3)
    without_guidance = generated("--guidance_scale", "1")
    assert not np.array_equal(without_guidance, np.asarray(expected))
    shutil.copytree(run.folder / "adapter" / "transformer", tmp_path / "subject" / "transformer")
    both = generated("--guidance_scale", "1", "--adapter", str(tmp_path / "subject"))
    assert not np.array_equal(both, without_guidance)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerate")
def test_the_command_predicts_memory_trains_and_evaluates(tiny_flux_2_klein, scenes, tmp_path, capsys):
    flags = ["--pretrained_model_name_or_path", str(tiny_flux_2_klein), "--train_data_dir", str(scenes)]
    flags += [
        "--output_dir",
        str(tmp_path / "run"),
        "--max_train_steps",
        "1",
        "--num_inference_steps",
        "1",
        "--resolution",
        "32",
    ]
    assert main(["train-control", *flags, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "condition_encoder: " in printed
    assert "on a GPU  train: transformer" in printed
    assert main(["train-control", *flags, "--report_to", "none"]) == 0
    assert (tmp_path / "run" / "before_after.png").is_file()
    assert main(["evaluate-control", str(tmp_path / "run"), "--pairs_dir", str(scenes), "--num_pairs", "3"]) == 0
    measures = json.loads((tmp_path / "run" / "metrics.json").read_text())["measures"]
    assert set(measures["canny F1, within 0 px"]) == {"controlled", "shuffled", "base", "real"}
    saved = read_toml(tmp_path / "run" / "config.toml", ControlNetConfig())
    assert saved.adapter.target_modules == FAMILIES["Flux2KleinPipeline"].default_targets


def test_other_transformers_are_refused_by_the_families_that_there_are(klein_config, tiny_z_image, tmp_path):
    config = with_values(klein_config, {"pretrained_model_name_or_path": str(tiny_z_image)})
    with pytest.raises(ModelError, match=r"takes no control: use a model of .*: Stable Diffusion 1, 2, XL, FLUX\.2\.$"):
        prepare_run(ControlNet(config))
    assert not (tmp_path / "run").exists()


def test_a_unets_control_has_the_target_modules_of_the_paper(control_config):
    assert prepare_run(ControlNet(control_config)).config.adapter.target_modules == CONTROL_TARGETS
