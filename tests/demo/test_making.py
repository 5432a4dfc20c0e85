"""The base is made from nothing by its commands, here with hardly any training."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PARTS = (
    "data --count 40",
    "autoencoder --steps 2",
    "diffusion --steps 2",
    "export",
    "subjects",
    "control",
    "judge --steps 2",
    "score --count 8",
)
PROJECT = Path(__file__).resolve().parents[2]
PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("assets/*/README.md")]


def make(folder, *arguments: str) -> str:
    where = ["--work_dir", str(folder), "--assets", str(folder / "assets")]
    command = [sys.executable, "-m", "hra_diffusion.demo", *where, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="the icons come from npm")
def test_the_commands_make_a_pipeline_that_draws_and_subjects_to_teach_it(tmp_path):
    from diffusers import StableDiffusionPipeline

    for part in PARTS:
        make(tmp_path, *part.split())
    base = tmp_path / "assets" / "emoji-sd"
    pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    assert pipe("a cat on a blue background", num_inference_steps=2).images[0].size == (128, 128)
    assert sum(path.stat().st_size for path in base.rglob("*.safetensors")) < 32e6
    assert "MIT" in (base / "README.md").read_text()
    judge = tmp_path / "assets" / "emoji-clip"
    assert sum(path.stat().st_size for path in judge.iterdir()) < 8e6
    assert "on 8 held-out combinations" in (base / "scores.md").read_text()
    subjects = sorted(folder.name for folder in (tmp_path / "assets" / "subjects").iterdir())
    assert len(subjects) == 6
    for name in subjects:
        folder = tmp_path / "assets" / "subjects" / name
        assert len(list(folder.glob("*.png"))) == 5
        assert len(list((folder / "held_out").glob("*.png"))) == 4


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="the icons come from npm")
def test_a_second_call_of_a_finished_part_changes_nothing(tmp_path):
    make(tmp_path, "data", "--count", "10")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    make(tmp_path, "data", "--count", "10")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(json.loads((tmp_path / "captions.json").read_text())) == 10


def test_every_command_in_the_guides_that_makes_a_part_is_one_of_these():
    told = {name for page in PAGES for name in re.findall(r"hra_diffusion\.demo (\w+)", page.read_text("utf-8"))}
    assert told
    assert told <= {part.split()[0] for part in PARTS}
