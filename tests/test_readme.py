"""Every command and snippet of the README is run, in order, in one folder laid out like the checkout."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
INSTALL = re.compile(r"^python3 -m venv \.venv && (?:\.venv/bin/pip install [^&]+ && )+")
# Enough to see that a command works; the default run has a test of its own.
SHORT = {"train_dreambooth_hra.py": ["--max_train_steps", "2", "--num_class_images", "2", "--num_inference_steps", "2"]}


def commands(block: str) -> list[list[str]]:
    """The words of each command, without what installs and with this interpreter's programs."""
    words = [shlex.split(INSTALL.sub("", line)) for line in block.strip().splitlines()]
    return [[str(_program(program)), *rest] for program, *rest in words]


def _program(name: str) -> Path:
    here = Path(sys.executable).parent
    return Path(sys.executable) if Path(name).name == "python" else here / Path(name).name


@pytest.mark.slow
def test_every_command_and_snippet_of_the_readme_runs(tmp_path, tiny_sd):
    for name in ("train_dreambooth_hra.py", "assets", "configs"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog").symlink_to(PROJECT / "assets" / "subjects" / "cat")
    (tmp_path / "stable-diffusion-v1-5").mkdir()
    (tmp_path / "stable-diffusion-v1-5" / "stable-diffusion-v1-5").symlink_to(tiny_sd)
    ran = 0
    for language, block in BLOCKS:
        for command in [[sys.executable, "-c", block]] if language == "python" else commands(block):
            if Path(command[0]).name == "pytest":
                continue  # this is what runs here
            extra = next((flags for script, flags in SHORT.items() if script in command), [])
            done = subprocess.run(
                command + extra, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
            ran += 1
    assert ran == 5
    assert (tmp_path / "outputs" / "tiger" / "before_after.png").exists()
    assert (tmp_path / "tiger.png").exists()


def test_the_gate_runs_the_readme_s_test_command():
    (command,) = [line for _, block in BLOCKS for line in block.splitlines() if line.endswith("pytest")]
    assert command in (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_links_of_the_documents_lead_somewhere():
    for page in [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
