"""Requests and the metadata of PNGs: reading inverts writing, and invalid settings are refused."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hra_diffusion.errors import ConfigError, HRAError, ImageError
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.requests import MAX_SEED, AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.grid import Axis, Grid
from hra_diffusion.studio.engine.images.metadata import (
    parameters,
    parse_parameters,
    png_info,
    read_png_settings,
    read_request,
)
from hra_diffusion.studio.engine.images.restoring import restore_settings
from hra_diffusion.studio.engine.models.base import Base

NAMED = {"adapters": "adapter|strength", "guidance_scale": "guidance_scale"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
USES = st.lists(
    st.builds(AdapterUse, name=st.text(max_size=20), strength=st.floats(0, 1.5)),
    max_size=4,
    unique_by=lambda use: use.name,
).map(tuple)
REQUESTS = st.builds(
    GenerateRequest,
    prompt=TEXTS,
    negative_prompt=TEXTS,
    adapters=USES,
    combine=st.sampled_from(["mean", "product"]),
    steps=st.integers(1, 150),
    guidance_scale=st.floats(0, 30),
    seed=st.integers(0, MAX_SEED),
)


@given(REQUESTS)
def test_a_png_preserves_every_setting(request):
    with TemporaryDirectory() as folder:
        Image.new("RGB", (2, 2)).save(Path(folder, "a.png"), pnginfo=png_info(request, "emoji-sd"))
        assert read_request(Path(folder, "a.png")) == request


@given(REQUESTS)
def test_json_preserves_a_request(request):
    assert GenerateRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_parameters_have_the_format_of_a1111():
    request = GenerateRequest(
        prompt="a dog", negative_prompt="blurry", adapters=(AdapterUse(name="dog", strength=0.8),)
    )
    assert parameters(request, "sd").split("\n") == [
        "a dog",
        "Negative prompt: blurry",
        "Steps: 25, Sampler: default, CFG scale: 7.5, Seed: 0, Size: 512x512, Model: sd, HRA adapters: dog:0.8, "
        "HRA combine: mean",
    ]


def test_clip_skip_is_in_the_json_only_if_it_is_given():
    assert "clip_skip" not in GenerateRequest().to_json()
    request = GenerateRequest.from_json({"clip_skip": 1.0})
    assert request.clip_skip == request.to_json()["clip_skip"] == 1
    assert "Clip skip: 2" in parameters(request, "sd")
    with pytest.raises(ConfigError, match="clip_skip is 12"):
        GenerateRequest(clip_skip=12)


def test_a_png_of_version_0_1_restores_its_request(tmp_path):
    settings = {"prompt": "a dog", "negative_prompt": "", "steps": 2, "guidance_scale": 7.5, "width": 64, "height": 64}
    settings |= {"scheduler": "the model's own", "seed": 3, "count": 1, "image": None, "image_strength": 0.6}
    settings |= {"condition": None, "control_start": 0.0, "control_end": 1.0}
    settings |= {"adapters": [{"name": "dog", "strength": 0.5}, {"name": "hat", "strength": 1.0}], "combine": "lie"}
    info = PngInfo()
    info.add_text("parameters", "a dog\nSteps: 2, HRA adapters: dog:0.5 hat:1, HRA combine: lie")
    info.add_text("hra_diffusion", json.dumps({"request": settings, "model": "sd"}))
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    request = read_request(tmp_path / "a.png")
    assert request == GenerateRequest.from_json(settings | {"combine": "mean", "prompt_syntax": "plain"})
    assert request.to_json() == settings | {"combine": "mean", "prompt_syntax": "plain"}


def test_settings_in_common_with_a1111_are_read_from_its_png(tmp_path):
    text = (
        "a cat,\non grass\nNegative prompt: ugly\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, "
        'Size: 512x768, Clip skip: 2, Model hash: 1, Lora hashes: "a: 1, b: 2", Version: 1'
    )
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    request = read_request(tmp_path / "a.png")
    assert (request.prompt, request.negative_prompt) == ("a cat,\non grass", "ugly")
    assert (request.steps, request.guidance_scale, request.seed) == (20, 7.0, 965400086)
    assert (request.width, request.height, request.clip_skip) == (512, 768, 1)
    assert (request.prompt_syntax, request.scheduler) == ("a1111", "DPM++ 2M Karras")


@given(st.text())
def test_any_text_is_parsed_as_parameters_without_a_crash(text):
    assert set(parse_parameters(text)) >= {"prompt", "negative_prompt"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"request": 3}', '{"request": {"steps": 1e99}}', '{"request": {"adapters": "x"}}', "[" * 9999],
)
def test_hostile_metadata_is_refused(tmp_path, text):
    info = PngInfo()
    info.add_text("hra_diffusion", text)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(HRAError):
        read_request(tmp_path / "a.png")


def test_other_files_than_png_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(ImageError, match="no readable PNG"):
        read_request(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("steps", "many"),
        ("steps", True),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("seed", -1),
        ("seed", 2**63),
        ("width", 4096),
        ("count", 17),
        ("prompt", ["a"]),
        ("prompt", "a" * 100_001),
        ("adapters", {"name": "a"}),
        ("adapters", [{"strength": 1}]),
        ("adapters", [{"name": "a", "strength": 1.6}]),
        ("adapters", [{"name": "a", "strength": "NaN"}]),
        ("adapters", ["a", "a"]),
        ("combine", "sum"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=NAMED.get(name, name)):
        GenerateRequest.from_json({name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": MAX_SEED, "count": 2}, "seed"),
        ({"image": "a" * 32, "steps": 1, "image_strength": 0.9}, "image_strength is 0.9: of 1 steps none is left"),
    ],
)
def test_contradictory_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        GenerateRequest.from_json(values)


def test_settings_unsuitable_for_the_model_are_left_out_by_name(tmp_path):
    base = Base(source="sd", name="sd", size=64, multiple=8, schedulers=("the model's own", "DDIM"))
    default = GenerateRequest(prompt="a dog", width=64, height=64, guidance_scale=4.0, seed=1)

    def restore(**texts: str) -> tuple[GenerateRequest, str]:
        info = PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
        request, changes = restore_settings(read_png_settings(tmp_path / "a.png"), base, Library(tmp_path), default)
        return request, "\n".join(changes)

    request, changes = restore(parameters="a cat\nSteps: 20, CFG scale: 40, Seed: -1, Size: 513x64")
    assert request == GenerateRequest(prompt="a cat", steps=20, guidance_scale=4.0, seed=1, width=512, height=64)
    assert all(change in changes for change in ("guidance_scale is 40", "seed is -1", "width is 513: taken as 512"))

    unsuitable = {
        "prompt": "a cat",
        "scheduler": "Heun",
        "height": 12,
        "adapters": [{"name": "gone"}],
        "condition": "a" * 32,
    }
    request, changes = restore(hra_diffusion=json.dumps({"request": unsuitable}))
    assert request == replace(default, prompt="a cat", height=16, prompt_syntax="plain")
    assert all(change in changes for change in ("'Heun'", "height is 12", "'gone' is not in the library"))


def test_a_grid_varies_two_settings_of_a_request():
    request = GenerateRequest(prompt="a cat", adapters=(AdapterUse(name="tiger", strength=0.7),), seed=3)
    grid = Grid.from_request(request, Axis.parse("strength", "0, 1"), Axis.parse("prompt", "{prompt} at night\na dog"))
    assert [[(cell.adapters[0].strength, cell.prompt) for cell in row] for row in grid.rows] == [
        [(0.0, "a cat at night"), (1.0, "a cat at night")],
        [(0.0, "a dog"), (1.0, "a dog")],
    ]
    plain = Grid.from_request(request, Axis.parse("strength", "0.5"), Axis.parse("adapter", "none, lion"))
    assert [row[0].adapters for row in plain.rows] == [(), (AdapterUse(name="lion", strength=0.5),)]


def test_the_axes_of_a_grid_are_settings_and_checkpoints():
    request = GenerateRequest(prompt="a cat", adapters=(AdapterUse(name="tiger", strength=0.7),))
    grid = Grid.from_request(request, Axis.parse("steps", "5, 20"), Axis.parse("guidance", "4, 7.5"))
    assert [[(cell.steps, cell.guidance_scale) for cell in row] for row in grid.rows] == [
        [(5, 4.0), (20, 4.0)],
        [(5, 7.5), (20, 7.5)],
    ]
    assert grid.labels(grid.x) == ["steps 5", "steps 20"]
    grid = Grid.from_request(request, Axis.parse("scheduler", "DDIM, Euler a"), Axis.parse("checkpoint", "50, final"))
    assert [[(cell.scheduler, cell.adapters[0]) for cell in row] for row in grid.rows] == [
        [(name, AdapterUse(name=adapter, strength=0.7)) for name in ("DDIM", "Euler a")]
        for adapter in ("tiger/checkpoint-50", "tiger")
    ]
    grid = Grid.from_request(request, Axis.parse("checkpoint", "50"), Axis.parse("adapter", "none, lion"))
    assert [row[0].adapters for row in grid.rows] == [(), (AdapterUse(name="lion/checkpoint-50", strength=0.7),)]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (("seed", "1"), ("seed", "2"), "both axes|Both axes"),
        (("seed", ""), ("strength", "1"), "1 to 12"),
        (("seed", "x"), ("strength", "1"), "seed"),
        (("steps", "0"), ("strength", "1"), "steps is 0"),
        (("guidance", "31"), ("strength", "1"), "guidance_scale is 31"),
        (("height", "1"), ("strength", "1"), "axis"),
        (("seed", "1,2,3,4,5,6,7,8,9"), ("prompt", "a\nb\nc\nd\ne\nf\ng\nh"), "64"),
    ],
)
def test_an_invalid_grid_is_refused_before_the_first_image(x, y, message):
    with pytest.raises(ConfigError, match=message):
        Grid.from_request(GenerateRequest(adapters=(AdapterUse(name="a"),)), Axis.parse(*x), Axis.parse(*y))


def test_a_checkpoint_axis_needs_an_adapter():
    with pytest.raises(ConfigError, match="A checkpoint axis needs an adapter"):
        Grid.from_request(GenerateRequest(), Axis.parse("checkpoint", "50"), Axis.parse("seed", "1"))
