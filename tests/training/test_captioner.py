"""Captions by an image-to-text model of transformers: a tiny BLIP with random weights."""

from pathlib import Path

import pytest
from PIL import Image

from hra_diffusion.cli.main import main
from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.training.data.captioner import Captioner, caption_folder
from tests.captioners import WORDS, make_blip


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    return make_blip(tmp_path_factory.mktemp("captioner") / "blip")


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, color in (("a", "red"), ("b", "blue"), ("c", "white")):
        Image.new("RGB", (24, 24), color).save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("by hand")
    return tmp_path


def test_a_folder_is_captioned_beside_the_captions_by_hand(blip, folder, capsys):
    captioner = Captioner(str(blip))
    written = dict(caption_folder(captioner, folder, "a sks dog, "))
    assert [path.name for path in written] == ["a.png", "c.png"]
    assert (folder / "b.txt").read_text() == "by hand"
    for path, caption in written.items():
        words = caption.removeprefix("a sks dog, ")
        assert (path.with_suffix(".txt").read_text(), caption.startswith("a sks dog, ")) == (caption, True)
        assert words and set(words.split()) <= set(WORDS[5:])
        with Image.open(path) as image:
            assert captioner(image.convert("RGB")) == words
    with pytest.raises(ConfigError, match="--overwrite"):
        list(caption_folder(captioner, folder))
    assert main(["caption", str(folder), "--captioner", str(blip), "--overwrite"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3 and (folder / "b.txt").read_text() != "by hand"


def test_a_prompt_is_the_start_of_the_caption(blip):
    assert Captioner(str(blip), "the red cat")(Image.new("RGB", (24, 24))).startswith("the red cat")


def test_no_model_and_no_images_are_refused(blip, tmp_path):
    with pytest.raises(ModelError, match="AutoModelForImageTextToText"):
        Captioner(str(tmp_path))
    with pytest.raises(ConfigError, match="no images"):
        list(caption_folder(Captioner(str(blip)), tmp_path))


def test_the_studio_captions_images_with_its_captioner_alone(blip, folder):
    from hra_diffusion.studio.engine.config import StudioConfig
    from hra_diffusion.studio.engine.training.captions import ImageCaptions

    paths = sorted(folder.glob("*.png"))
    captions = ImageCaptions(StudioConfig(captioner=str(blip), caption_prompt="the red cat")).captions(paths)
    assert len(captions) == 3 and all(caption.startswith("the red cat") for caption in captions)
    with pytest.raises(ConfigError, match="--captioner"):
        ImageCaptions(StudioConfig()).captions(paths)
