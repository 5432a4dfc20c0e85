"""Requests, and the texts of PNGs that hold them: what is written is read, and what cannot be drawn is refused."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hra_diffusion.errors import ConfigError, HRAError, ImageError
from hra_diffusion.studio.engine.base import Base
from hra_diffusion.studio.engine.grid import Axis, Grid
from hra_diffusion.studio.engine.library import Library
from hra_diffusion.studio.engine.metadata import from_parameters, parameters, png_info, read_request, restored
from hra_diffusion.studio.engine.requests import MAX_SEED, AdapterUse, GenerateRequest

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
    steps=st.integers(1, 150),
    guidance_scale=st.floats(0, 30),
    seed=st.integers(0, MAX_SEED),
)


@given(REQUESTS)
def test_a_png_gives_every_setting_back(request):
    with TemporaryDirectory() as folder:
        Image.new("RGB", (2, 2)).save(Path(folder, "a.png"), pnginfo=png_info(request, "emoji-sd"))
        assert read_request(Path(folder, "a.png")) == request


@given(REQUESTS)
def test_json_gives_a_request_back(request):
    assert GenerateRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_the_parameters_are_those_of_a1111():
    request = GenerateRequest(
        prompt="a dog", negative_prompt="blurry", adapters=(AdapterUse(name="dog", strength=0.8),)
    )
    assert parameters(request, "sd").split("\n") == [
        "a dog",
        "Negative prompt: blurry",
        "Steps: 25, Sampler: default, CFG scale: 7.5, Seed: 0, Size: 512x512, Model: sd, HRA adapters: dog:0.8, "
        "HRA combine: lie",
    ]


def test_a_png_of_a1111_is_read_as_far_as_both_know_the_same(tmp_path):
    text = (
        "a cat,\non grass\nNegative prompt: ugly\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, "
        'Size: 512x768, Model hash: 1, Lora hashes: "a: 1, b: 2", Version: 1'
    )
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    found = read_request(tmp_path / "a.png")
    assert (found.prompt, found.negative_prompt) == ("a cat,\non grass", "ugly")
    assert (found.steps, found.guidance_scale, found.seed) == (20, 7.0, 965400086)
    assert (found.width, found.height) == (512, 768)


@given(st.text())
def test_any_text_for_parameters_is_read_without_a_crash(text):
    assert set(from_parameters(text)) >= {"prompt", "negative_prompt"}


@pytest.mark.parametrize(
    "ours",
    ["", "{", "[]", '{"request": 3}', '{"request": {"steps": 1e99}}', '{"request": {"adapters": "x"}}', "[" * 9999],
)
def test_hostile_texts_are_refused(tmp_path, ours):
    info = PngInfo()
    info.add_text("hra_diffusion", ours)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(HRAError):
        read_request(tmp_path / "a.png")


def test_what_is_no_png_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(ImageError, match="no PNG"):
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
def test_what_cannot_be_drawn_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=NAMED.get(name, name)):
        GenerateRequest.from_json({name: value})


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"seed": MAX_SEED, "count": 2}, "seed"),
        ({"image": "a" * 32, "steps": 1, "image_strength": 0.9}, "image_strength is 0.9: of 1 steps none is left"),
    ],
)
def test_settings_that_together_cannot_be_drawn_are_refused(values, why):
    with pytest.raises(ConfigError, match=why):
        GenerateRequest.from_json(values)


def test_what_a_image_says_and_this_model_cannot_draw_is_left_out_by_name(tmp_path):
    base = Base(source="sd", name="sd", size=64, multiple=8, schedulers=("the model's own", "DDIM"))
    default = GenerateRequest(prompt="a dog", width=64, height=64, guidance_scale=4.0, seed=1)

    def restored_from(**texts: str) -> tuple[GenerateRequest, str]:
        info = PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
        request, changes = restored(tmp_path / "a.png", base, Library(tmp_path), default)
        return request, "\n".join(changes)

    request, said = restored_from(parameters="a cat\nSteps: 20, CFG scale: 40, Seed: -1, Size: 513x64")
    assert request == GenerateRequest(prompt="a cat", steps=20, guidance_scale=4.0, seed=1, width=512, height=64)
    assert all(each in said for each in ("guidance_scale is 40", "seed is -1", "width is 513: taken as 512"))

    ours = {"prompt": "a cat", "scheduler": "Heun", "height": 12, "adapters": [{"name": "gone"}], "condition": "a" * 32}
    request, said = restored_from(hra_diffusion=json.dumps({"request": ours}))
    assert request == GenerateRequest(prompt="a cat", guidance_scale=4.0, seed=1, width=64, height=16)
    assert all(each in said for each in ("'Heun'", "height is 12", "'gone' is not in the library"))


def test_a_grid_is_the_request_with_two_settings_changed():
    request = GenerateRequest(prompt="a cat", adapters=(AdapterUse(name="tiger", strength=0.7),), seed=3)
    grid = Grid.from_request(request, Axis.parse("strength", "0, 1"), Axis.parse("prompt", "{prompt} at night\na dog"))
    assert [[(cell.adapters[0].strength, cell.prompt) for cell in row] for row in grid.rows] == [
        [(0.0, "a cat at night"), (1.0, "a cat at night")],
        [(0.0, "a dog"), (1.0, "a dog")],
    ]
    plain = Grid.from_request(request, Axis.parse("strength", "0.5"), Axis.parse("adapter", "none, lion"))
    assert [row[0].adapters for row in plain.rows] == [(), (AdapterUse(name="lion", strength=0.5),)]


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (("seed", "1"), ("seed", "2"), "both axes|Both axes"),
        (("seed", ""), ("strength", "1"), "1 to 12"),
        (("seed", "x"), ("strength", "1"), "seed"),
        (("height", "1"), ("strength", "1"), "axis"),
        (("seed", "1,2,3,4,5,6,7,8,9"), ("prompt", "a\nb\nc\nd\ne\nf\ng\nh"), "64"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_is_drawn(x, y, why):
    with pytest.raises(ConfigError, match=why):
        Grid.from_request(GenerateRequest(adapters=(AdapterUse(name="a"),)), Axis.parse(*x), Axis.parse(*y))
