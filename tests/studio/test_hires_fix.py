"""Upscale and refine (hires fix): the second pass is image to image of the upscaled first one."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.events import Progress
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.images.metadata import parameters, parse_parameters

PLAIN = GenerateRequest(
    prompt="a cat", steps=2, width=32, height=24, seed=3, adapters=(AdapterUse(name="amber", strength=1.5),)
)
UPSCALED = replace(PLAIN, hires_scale=1.5, hires_steps=4, hires_strength=0.5)


def test_the_settings_of_the_second_pass_are_in_the_metadata():
    assert GenerateRequest.from_json(UPSCALED.to_json()) == UPSCALED
    assert not [name for name in PLAIN.to_json() if name.startswith("hires")]
    text = parameters(UPSCALED, "sd")
    assert "Hires upscale: 1.5, Hires upscaler: Lanczos, Denoising strength: 0.5, Hires steps: 4" in text
    read = GenerateRequest.from_json(parse_parameters(text))
    assert (read.hires_scale, read.hires_steps, read.hires_strength) == (1.5, 4, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hires_scale": 0.5}, "hires_scale is 0.5: give a number from 1 to 4"),
        ({"hires_scale": 2, "hires_steps": 1}, "hires_strength is 0.5: of 1 steps none is left"),
        ({"hires_scale": 4, "width": 2048}, "hires_scale gives 8192 pixels a side, more than 4096"),
        ({"hires_scale": 2, "image": "a" * 32, "mask": "b" * 32}, "hires_scale is for images without a mask"),
    ],
)
def test_an_impossible_second_pass_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        GenerateRequest.from_json(values)


@pytest.mark.slow
def test_the_second_pass_is_image_to_image_of_the_upscaled_image(session):
    def generate(request: GenerateRequest) -> tuple[list[tuple[int, int]], SavedImage]:
        events = list(session.generate(request, "me"))
        (saved,) = [event for event in events if isinstance(event, SavedImage)]
        return [(event.step, event.steps) for event in events if isinstance(event, Progress)], saved

    steps, upscaled = generate(UPSCALED)
    assert upscaled.image.size == (48, 36)
    assert steps == [(1, 2), (2, 2), (1, 2), (2, 2)]  # half of the second pass's 4 steps
    _, plain = generate(PLAIN)
    larger = plain.image.resize((48, 36), Image.Resampling.LANCZOS)
    start = session.uploads.save(larger)
    refined = replace(PLAIN, width=48, height=36, steps=4, image=start, image_strength=0.5)
    _, expected = generate(refined)
    assert np.array_equal(np.asarray(upscaled.image), np.asarray(expected.image))
    assert not np.array_equal(np.asarray(upscaled.image), np.asarray(larger))
    assert session.restore(upscaled.path) == (UPSCALED, [])
