"""The page opens before the weights are loaded: the JSON files of a base have all facts for it."""

import shutil
import subprocess
import sys
import threading

import pytest

from hra_diffusion.errors import ModelError
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.generation.events import Loading
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.models.base import read_base
from hra_diffusion.studio.engine.models.model_worker import ModelWorker
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import Uploads


@pytest.fixture
def copy(tiny_sd, tmp_path):
    """A copy of the tiny base for tests that damage it."""
    return shutil.copytree(tiny_sd, tmp_path / "copy")


@pytest.mark.parametrize("family", ["tiny_sd", "tiny_sd_v"])
def test_the_facts_of_a_base_equal_those_of_its_pipeline(request, family):
    from diffusers import StableDiffusionPipeline

    folder = request.getfixturevalue(family)
    pipe, base = StableDiffusionPipeline.from_pretrained(folder), read_base(str(folder))
    assert base.multiple == pipe.vae_scale_factor
    assert base.size == pipe.unet.config.sample_size * pipe.vae_scale_factor
    assert base.name == folder.name
    assert "DDIM" in base.schedulers


def test_an_unusable_base_is_refused_at_once_with_the_reason(copy, tmp_path):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file in its unet"):
        read_base(str(copy))
    (copy / "vae" / "config.json").write_text("{}")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(ModelError, match="block_out_channels"):
        read_base(str(copy))
    (copy / "model_index.json").write_text('{"_class_name": "AudioPipeline", "vocoder": ["x", "Y"]}')
    with pytest.raises(ModelError, match="is a AudioPipeline"):
        read_base(str(copy))
    for source in (tmp_path, tmp_path / "nowhere", "nobody/nothing"):
        with pytest.raises(ModelError, match=r"model_index\.json"):
            read_base(str(source))
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(ModelError, match="pickled"):
        read_base(str(tmp_path / "a.ckpt"))


def test_damaged_weights_are_reported_to_every_request_and_logged(copy, tmp_path, caplog):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    worker = ModelWorker(read_base(str(copy)), Library(tmp_path), Uploads(tmp_path))
    worker.warm_up()
    for _ in range(2):
        events = worker.stream(GenerateRequest(width=32, height=32), threading.Event())
        assert next(events) == Loading()
        with pytest.raises(ModelError, match="cannot be loaded"):
            next(events)
    worker.close()
    assert "cannot be loaded" in caplog.text


def test_the_default_is_the_embedded_base_with_its_adapters(tmp_path):
    session = Session(StudioConfig(folder=tmp_path))
    assert session.worker.base.is_embedded
    assert session.worker.base.name == "emoji-sd"
    assert session.default_request.width == 128
    names = {entry.name for entry in session.library.entries() if entry.base == "emoji-sd"}
    assert names == {"canny", "teapot", "tiger"}


def test_downloads_are_removed_after_a_day(tmp_path, monkeypatch):
    for name in ("cache/abc/a.png", "images/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    Session(StudioConfig(folder=tmp_path))
    assert (tmp_path / "cache" / "abc" / "a.png").exists()
    monkeypatch.setattr("hra_diffusion.studio.engine.cache.DAY", -1)
    Session(StudioConfig(folder=tmp_path))
    assert not (tmp_path / "cache" / "abc").exists()
    assert (tmp_path / "images" / "b.png").exists()


@pytest.mark.slow
def test_the_page_is_built_without_diffusers(tiny_sd, tmp_path):
    code = f"""
import sys
from pathlib import Path
from hra_diffusion.studio import StudioConfig
from hra_diffusion.studio.page import build_page
from hra_diffusion.studio.engine.session import Session
build_page(Session(StudioConfig(base={str(tiny_sd)!r}, folder=Path({str(tmp_path)!r}))))
print([name for name in ("diffusers", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
