"""The project's data in a checkout, and the extras that may be missing. tests/test_wheel.py installs a wheel."""

import importlib
import logging
import sys
from pathlib import Path

import pytest

from hra_diffusion.errors import ConfigError, MissingExtraError
from hra_diffusion.resources import DATA, find_config, find_data
from hra_diffusion.studio import StudioConfig, launch
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import make_config
from hra_diffusion.training.data import dataset


def test_the_data_are_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_data("assets/emoji-sd") == str(DATA / "assets" / "emoji-sd")
    assert find_data(Path("assets/adapters/tiger")) == DATA / "assets" / "adapters" / "tiger"
    for other in ("hra_diffusion", "outputs/tiger", "assets/nothing", "user/repository", "", "https://hub/x//y"):
        assert find_data(other) == other
    (tmp_path / "assets" / "emoji-sd").mkdir(parents=True)
    assert find_data("assets/emoji-sd") == "assets/emoji-sd"


def test_a_config_of_an_earlier_run_names_the_data_of_this_installation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(
        DreamBoothConfig,
        pretrained_model_name_or_path="assets/emoji-sd",
        instance_data_dir="assets/subjects/robot",
        output_dir="assets/adapters/tiger",
    )
    assert Path(config.model.pretrained_model_name_or_path) == DATA / "assets" / "emoji-sd"
    assert config.data.instance_data_dir == DATA / "assets" / "subjects" / "robot"
    assert config.run.output_dir == Path("assets/adapters/tiger")  # nothing is written into an installation


def test_a_config_is_named_by_its_path_or_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("subject-sdxl", "subject-sdxl-12gb", "configs/subject-sdxl-12gb.toml"):
        assert find_config(Path(name)) == DATA / "configs" / "subject-sdxl-12gb.toml"
    assert find_config(Path("embedded")).name == "embedded.toml"
    assert find_config(Path("mine.toml")) == Path("mine.toml")
    (tmp_path / "style").write_text("rank = 4\n")
    assert find_config(Path("style")) == Path("style")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("subject", "subject-chroma-16gb or subject-flux1-dev-16gb or subject-flux2-dev-24gb or "),
        ("styel", "did you mean 'style'"),
        ("zzz", "known are control-flux2-klein-16gb, embedded, "),
    ],
)
def test_an_unknown_or_ambiguous_config_is_refused(name, message):
    with pytest.raises(ConfigError, match=f"--config {name} .*{message}"):
        find_config(Path(name))


def test_the_studio_without_gradio_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hra-diffusion\[studio\]'"):
        launch(StudioConfig())


def test_controls_without_opencv_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "hra_diffusion.control.opencv", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'hra-diffusion\[control\]'"):
        importlib.import_module("hra_diffusion.control.opencv")


def test_without_imagehash_identical_files_are_duplicates(images, monkeypatch, caplog):
    monkeypatch.setattr(dataset, "phash", None)
    (images / "4.png").write_bytes((images / "0.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        dataset.report_duplicates(dataset.check_images(sorted(images.iterdir()), images))
    assert "pip install 'hra-diffusion[duplicates]'" in caplog.text
    assert f"{images / '0.png'} and {images / '4.png'}" in caplog.text
    assert caplog.text.count(" and ") == 1
