"""Run every command and snippet of the README and the guides, in order, in a copy of the checkout."""

import re
import shlex
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
LINKED_PAGES = [*sorted(PROJECT.glob("*.md")), *PAGES[1:], PROJECT / "tests" / "README.md"]
INSTALL = re.compile(r"^python3 -m venv \.venv(?: && \.venv/bin/pip install [^&]+)+(?: && |$)")
LAUNCH = re.compile(r"^torchrun --nproc_per_node 2 ")  # pipelines/test_serving.py launches two processes
# Enough to check that a command works; benchmarks/default_run.py makes the full run.
SHORT_RUN = ["--max_train_steps", "2", "--num_inference_steps", "2"]
TINY_MODEL = ["--model", "stable-diffusion-v1-5/stable-diffusion-v1-5"]
SHORT = {
    "train_dreambooth_hra.py": ["--num_class_images", "2", *SHORT_RUN],
    "train_controlnet_hra.py": ["--max_train_samples", "8", "--num_validation_images", "1", *SHORT_RUN],
    "benchmarks/methods.py": TINY_MODEL,
    "benchmarks/composition.py": TINY_MODEL,
    "benchmarks/frontier.py": TINY_MODEL,
}
COUNT = re.compile(r"\b(max_train_steps|num_inference_steps|num_class_images)=(?:[3-9]|\d\d+)\b")
EXPECTED_OUTPUT = {"benchmarks/core.py": ("### unet-smoke", "### decoder-smoke", "### growth", "### operations")}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of a page's Bash and Python blocks."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def page_name(page: Path) -> str:
    """Return a page's path within the project."""
    return page.relative_to(PROJECT).as_posix()


def lines(block: str) -> list[str]:
    """Return a block's lines; lines that end with a backslash are joined with the next ones."""
    return re.sub(r"\\\n\s*", "", block).strip().splitlines()


def commands(language: str, block: str) -> list[list[str]]:
    """Return a block's commands as arguments of Python, shortened, without installations."""
    if language == "python":
        return [["-c", COUNT.sub(r"\1=2", block)]]
    words = [shlex.split(LAUNCH.sub("python ", INSTALL.sub("", line))) for line in lines(block)]
    programs = [[*_program(Path(program).name), *rest, *_short_flags(rest)] for program, *rest in filter(None, words)]
    return [command for command in programs if Path(command[0]).name != "pytest"]  # pytest would run this test again


def _short_flags(arguments: list[str]) -> list[str]:
    return next((flags for script, flags in SHORT.items() if script in arguments), [])


def _program(name: str) -> list[str]:
    """Return no argument for Python itself, else the script installed beside Python."""
    return [] if name == "python" else [str(Path(sys.executable).with_name(name))]


@pytest.fixture
def checkout(tmp_path, tiny_sd) -> Path:
    """Return a folder like the checkout, with photos, and a tiny model under the name of Stable Diffusion 1.5."""
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
@pytest.mark.parametrize("page", filter(blocks, PAGES), ids=page_name)
def test_every_command_and_snippet_runs(page, checkout, python):
    for block in blocks(page):
        for command in commands(*block):
            process = python(*command, cwd=checkout)
            assert process.returncode == 0, f"{shlex.join(command)}\n{process.stderr}"
            for title in EXPECTED_OUTPUT.get(command[0], ()):
                assert title in process.stdout
                assert "nan" not in process.stdout


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = [line for _, block in blocks(PAGES[0]) for line in lines(block) if line.endswith("pytest")]
    assert command in (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", LINKED_PAGES, ids=page_name)
def test_relative_links_have_targets(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
