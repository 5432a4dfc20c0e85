"""Every command and snippet of the README and the guides is run, in order, in a folder laid out like the checkout."""

import re
import shlex
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
INSTALL = re.compile(r"^python3 -m venv \.venv && (?:\.venv/bin/pip install [^&]+ && )+")
# Enough to see that a command works; benchmarks/default_run.py takes the whole way.
SHORT = {
    "train_dreambooth_hra.py": ["--num_class_images", "2"],
    "train_controlnet_hra.py": ["--max_train_samples", "8", "--num_validation_images", "1"],
}
PRINTED = {"benchmarks/core.py": ("### unet-smoke", "### decoder-smoke", "### growth", "### operations")}
SHORT_RUN = ["--max_train_steps", "2", "--num_inference_steps", "2"]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the page's code blocks that can be run."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(language: str, block: str) -> list[list[str]]:
    """The block's commands as arguments of Python, without what installs, and short."""
    if language == "python":
        return [["-c", block]]
    words = [shlex.split(INSTALL.sub("", line)) for line in block.strip().splitlines()]
    found = [[*_program(Path(program).name), *rest, *_shortened(rest)] for program, *rest in words]
    return [command for command in found if Path(command[0]).name != "pytest"]  # that is what runs here


def _shortened(arguments: list[str]) -> list[str]:
    return next(([*flags, *SHORT_RUN] for script, flags in SHORT.items() if script in arguments), [])


def _program(name: str) -> list[str]:
    """Nothing for Python itself; else the script that was installed beside it."""
    return [] if name == "python" else [str(Path(sys.executable).with_name(name))]


@pytest.fixture
def checkout(tmp_path, tiny_sd) -> Path:
    """A folder like the checkout, with photos, and a tiny model that goes by the name of a famous one."""
    scripts = ("train_dreambooth_hra.py", "train_controlnet_hra.py", "app.py")
    for name in (*scripts, "assets", "benchmarks", "configs", "examples"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog").symlink_to(PROJECT / "assets" / "subjects" / "cat")
    (tmp_path / "photos" / "pairs").symlink_to(PROJECT / "assets" / "control")
    (tmp_path / "stable-diffusion-v1-5").mkdir()
    (tmp_path / "stable-diffusion-v1-5" / "stable-diffusion-v1-5").symlink_to(tiny_sd)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_command_and_snippet_runs(page, checkout, python):
    for block in blocks(page):
        for command in commands(*block):
            done = python(*command, cwd=checkout)
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
            for title in PRINTED.get(command[0], ()):
                assert title in done.stdout
                assert "nan" not in done.stdout


def test_the_gate_runs_the_readme_s_test_command():
    (command,) = [line for _, block in blocks(PAGES[0]) for line in block.splitlines() if line.endswith("pytest")]
    assert command in (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
