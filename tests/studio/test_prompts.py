"""Long prompts and weights in the studio: images, their metadata, and the grid."""

import threading
from dataclasses import replace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.events import Generated
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.grid import Axis, Grid
from hra_diffusion.studio.engine.images.metadata import read_png_settings
from hra_diffusion.studio.engine.images.restoring import restore_settings
from hra_diffusion.studio.engine.models.base import Base
from hra_diffusion.studio.engine.uploads import read_upload

LONG = "a photo of a sks dog on a beach, in the morning, with a red ball and two small cats beside it"


def generate_image(session, request: GenerateRequest) -> Image.Image:
    """Generate the only image of a request, without a page."""
    (image,) = (
        event.image for event in session.worker.stream(request, threading.Event()) if isinstance(event, Generated)
    )
    return image


@pytest.mark.parametrize("kind", ["text to image", "image to image", "control"])
def test_weights_and_the_end_of_a_long_prompt_change_the_image(session, subject, kind):
    request = GenerateRequest(prompt=LONG, steps=2, width=32, height=32)
    if kind == "image to image":
        request = replace(request, image=session.uploads.save(read_upload(subject[0])))
    if kind == "control":
        request = replace(request, adapters=(AdapterUse(name="edges"),))
        request = session.with_condition(request, subject[0], "own")

    def image(**settings) -> bytes:
        return generate_image(session, replace(request, **settings)).tobytes()

    assert image() == image(prompt=f"({LONG}:1.0)") != image(prompt=f"{LONG} and a tree")
    assert image(prompt="a (red:1.5) dog") != image(prompt="a red dog") == image(prompt=r"a (red:1) dog")
    plain = image(prompt="a (red:1.5) dog", prompt_syntax="plain")
    assert plain == image(prompt=r"a \(red:1.5\) dog") != image(prompt="a (red:1.5) dog")


def test_an_image_of_a_long_prompt_with_weights_is_restored(session):
    uses = (AdapterUse(name="amber"), AdapterUse(name="birch", strength=0.5))
    request = GenerateRequest(
        prompt=f"({LONG}:1.2)", negative_prompt="[blurry] (ugly)", adapters=uses, steps=1, width=32, height=32
    )
    *_, saved = session.generate(request, "me")
    restored, changes = session.restore(saved.path)
    assert (restored, changes) == (request, []) and restored.prompt == f"({LONG}:1.2)"
    assert generate_image(session, restored).tobytes() == saved.image.tobytes()


def test_the_prompts_of_a_grid_have_weights(session):
    request = GenerateRequest(prompt="dog", steps=1, width=32, height=32)
    axes = Axis.parse("prompt", "a ({prompt}:1.5)\na {prompt}"), Axis.parse("seed", "1")
    images = [
        event.image
        for event in session.generate_grid(Grid.from_request(request, *axes), "me")
        if hasattr(event, "path")
    ]
    weighted, plain = (
        generate_image(session, replace(request, prompt=text, seed=1)) for text in ("a (dog:1.5)", "a dog")
    )
    assert [image.tobytes() for image in images] == [weighted.tobytes(), plain.tobytes()]
    assert weighted.tobytes() != plain.tobytes()


def test_only_the_end_of_very_long_prompts_is_reported_as_ignored(session):
    generator = session.worker.generator
    assert generator.truncated_text(LONG, "plain") and not generator.truncated_text(LONG, "a1111")
    assert generator.truncated_text("a" * 8_003, "a1111") == "aaa"


@pytest.mark.parametrize(("text_encoders", "clip_skip"), [(1, 1), (2, None)])
def test_the_clip_skip_of_a1111_is_restored_except_for_sdxl_where_a1111_ignores_it(tmp_path, text_encoders, clip_skip):
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Size: 64x64, Clip skip: 2")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    base = Base(source="sd", name="sd", size=64, multiple=8, schedulers=("DDIM",), text_encoders=text_encoders)
    settings = read_png_settings(tmp_path / "a.png")
    request, changes = restore_settings(settings, base, Library(tmp_path), GenerateRequest())
    assert (request.clip_skip, request.prompt_syntax, changes) == (clip_skip, "a1111", [])
