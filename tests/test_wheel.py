"""The source distribution and its wheel: installed without the checkout, commands find models, adapters and configs."""

import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
EXTRAS = "cv2,gradio,imagehash,scipy"
HIDE = "import os, sys; sys.modules.update(dict.fromkeys(filter(None, os.environ.get('HIDDEN', '').split(','))))"
SHORT = ("--max_train_steps", "2", "--num_class_images", "2", "--num_inference_steps", "2", "--train_batch_size", "1")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Return the source distribution, as `.ci/run` and `pip` build it."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a checkout or a source distribution in a folder."""
    build = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*PIP, *build], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Return the wheel that `pip install hra_diffusion-….tar.gz` builds."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """Return a virtual environment with the wheel, and with the packages of this one except the project."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv")
    interpreter = folder / "venv" / "bin" / "python"
    subprocess.run([*PIP, "--python", interpreter, "install", "--no-index", "--no-deps", wheel], check=True)
    (packages,) = (folder / "venv" / "lib").glob("*/site-packages")
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{HIDE}\n")
    return folder / "venv"


@pytest.fixture
def installed(environment, tmp_path):
    """Return a function that runs a program of the environment in an empty folder; ``hidden`` cannot be imported."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}

    def run(program: str, *arguments: str, hidden: str = EXTRAS) -> subprocess.CompletedProcess:
        command = [environment / "bin" / program, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env={**variables, "HIDDEN": hidden}, capture_output=True, text=True
        )

    return run


def test_the_version_and_its_date_are_the_same_in_all_files():
    citation = (PROJECT / "CITATION.cff").read_text("utf-8")
    (date,) = re.findall(r'^date-released: "(.+)"$', citation, re.MULTILINE)
    assert re.findall("^version: (.+)$", citation, re.MULTILINE) == [VERSION]
    changelog = (PROJECT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[(.+)\] - (.+)$", changelog, re.MULTILINE)[0] == (VERSION, date)
    serving = (PROJECT / "docs" / "guides" / "serving.md").read_text("utf-8")
    assert f"hra_diffusion-{VERSION}-py3-none-any.whl" in serving


@pytest.mark.slow
def test_a_source_distribution_has_the_files_of_the_checkouts_wheel(wheel, tmp_path):
    contents = []
    for path in (wheel, build_wheel(PROJECT, tmp_path)):
        with zipfile.ZipFile(path) as archive:
            contents.append({entry.filename: entry.CRC for entry in archive.infolist()})
    assert contents[0] == contents[1]
    assert "hra_diffusion/assets/emoji-sd/model_index.json" in contents[0]


@pytest.mark.slow
def test_an_installed_wheel_trains_and_generates_without_checkout_and_extras(installed, tmp_path):
    script = "import hra_diffusion, importlib.util as u; print(hra_diffusion.__file__, u.find_spec('emoji_world'))"
    place, tool = installed("python", "-c", script).stdout.split()
    assert not Path(place).is_relative_to(PROJECT)
    assert tool == "None"
    assert installed("hra-diffusion", "--version").stdout == f"hra-diffusion {VERSION}\n"

    trained = installed("hra-diffusion", "train", *SHORT)
    assert trained.returncode == 0, trained.stderr
    assert "hra-diffusion[duplicates]" in trained.stderr
    assert (tmp_path / "outputs" / "tiger" / "before_after.png").is_file()
    assert (tmp_path / "outputs" / "tiger" / "metrics.md").is_file()

    for number, adapter in enumerate(("assets/adapters/teapot", "outputs/tiger")):
        flags = ("--prompt", "a 3d render of a cat", "--num_inference_steps", "2", "--output_dir", f"images-{number}")
        generated = installed("hra-diffusion", "generate", "--adapter", adapter, *flags)
        assert generated.returncode == 0, generated.stderr
        assert (tmp_path / generated.stdout.strip()).is_file()


@pytest.mark.slow
def test_an_installed_wheel_knows_its_configs_by_name(installed):
    model = ("--pretrained_model_name_or_path", "assets/emoji-sd", "--resolution", "128", "--mixed_precision", "no")
    data = ("--instance_data_dir", "assets/subjects/robot", "--num_class_images", "2")
    planned = installed("hra-diffusion", "train", "--config", "style", *model, *data, "--dry_run")
    assert planned.returncode == 0, planned.stderr
    assert "15 checkpoints" in planned.stdout  # of 1500 steps, as configs/style.toml has them


@pytest.mark.slow
def test_an_installed_wheel_names_the_extra_that_a_command_needs(installed):
    for command, extra in (("studio", "studio"), ("train-control", "control")):
        refused = installed("hra-diffusion", command)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
        assert f"pip install 'hra-diffusion[{extra}]'" in refused.stderr


@pytest.mark.slow
def test_an_installed_wheel_opens_the_studio(environment, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [environment / "bin" / "hra-diffusion", "studio", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL) as studio:
        try:
            assert "tiger" in _page(f"http://127.0.0.1:{port}/config", seconds=120)  # a shipped adapter
        finally:
            studio.terminate()


def _page(url: str, seconds: float) -> str:
    """Read a page of a server that is starting."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url) as page:
                return page.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
