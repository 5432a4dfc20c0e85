"""The commands make the base from random weights, here with hardly any training."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

PARTS = (
    "data --count 40",
    "autoencoder --steps 2",
    "diffusion --steps 2",
    "export",
    "pairs --count 2 --steps 1",
    "subjects",
    "control",
    "judge --steps 2",
    "score --count 8",
)
PROJECT = Path(__file__).resolve().parents[2]
PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("assets/*/README.md")]


@pytest.fixture(scope="module")
def made(python, tmp_path_factory):
    """Make every part; return the folder and the function that makes one part."""
    if not shutil.which("npm"):
        pytest.skip("The icons come from npm, and npm is not installed.")
    folder = tmp_path_factory.mktemp("demo")

    def make(part: str) -> None:
        folders = ("--work_dir", folder, "--assets", folder / "assets")
        process = python("-m", "emoji_world", *folders, *part.split())
        assert process.returncode == 0, process.stderr

    for part in PARTS:
        make(part)
    return folder, make


@pytest.mark.slow
def test_the_commands_make_a_working_pipeline_and_subjects_to_train_on(made):
    from diffusers import StableDiffusionPipeline

    assets = made[0] / "assets"
    base = assets / "emoji-sd"
    pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    assert pipe("a cat on a blue background", num_inference_steps=2).images[0].size == (128, 128)
    assert sum(path.stat().st_size for path in base.rglob("*.safetensors")) < 32e6
    assert "MIT" in (base / "README.md").read_text()
    assert sum(path.stat().st_size for path in (assets / "emoji-clip").iterdir()) < 8e6
    assert "on 8 held-out combinations" in (base / "scores.md").read_text()
    subjects = sorted((assets / "subjects").iterdir())
    assert len(subjects) == 6
    for folder in subjects:
        assert len(list(folder.glob("*.png"))) == 5
        assert len(list((folder / "held_out").glob("*.png"))) == 4


@pytest.mark.slow
def test_a_copy_of_the_base_learns_two_things(made):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(made[0] / "emoji-sd-pairs", dtype=torch.float32)
    options = {"width": 256, "height": 128, "num_inference_steps": 1}
    assert pipe("a cat and a bus", **options).images[0].size == (256, 128)


@pytest.mark.slow
def test_repeating_a_finished_command_changes_nothing(made):
    folder, make = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    make(PARTS[0])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(json.loads((folder / "captions.json").read_text())) == 40


def test_every_emoji_world_command_in_the_documents_exists():
    named = {name for page in PAGES for name in re.findall(r"emoji_world (\w+)", page.read_text("utf-8"))}
    assert named
    assert named <= {part.split()[0] for part in PARTS}
