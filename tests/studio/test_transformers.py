"""The studio generates with transformers, whose pipelines pack latents in tokens, as with Stable Diffusion."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from hra_diffusion import load_hra_weights
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import generate_image, load_pipeline
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.events import Generated, Progress
from hra_diffusion.studio.engine.generation.generator import Generator
from hra_diffusion.studio.engine.generation.preview import Preview
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.models.base import read_base
from hra_diffusion.studio.engine.models.model_worker import ModelWorker
from hra_diffusion.studio.engine.uploads import Uploads
from hra_diffusion.training.families.latent_space import LatentSpace
from tests import models
from tests.pipelines.conftest import rotated
from tests.versions import transformer_families

pytestmark = transformer_families

GUIDANCE = {"z-image": 4.0, "flux-1": 3.5, "chroma": 5.0, "flux-2-klein": 4.0, "flux-2-dev": 4.0, "qwen-image": 4.0}
SETTINGS = {"prompt": "a sks dog", "steps": 2, "width": 48, "height": 32, "seed": 3}


@pytest.fixture(scope="module", params=models.TRANSFORMERS)
def base(request, tiny_transformer):
    """The folder of a tiny model of each family."""
    return tiny_transformer(request.param)


@pytest.fixture(scope="module")
def generator(base, tmp_path_factory):
    """A generator with one adapter in its library."""
    folder = tmp_path_factory.mktemp("studio")
    pipe = load_pipeline(str(base))
    rotated(pipe.transformer, ["to_q", "to_v"], rank=2, seed=3, angle=1.0).save_pretrained(folder / "a" / "transformer")
    library, uploads = Library(folder / "library"), Uploads(folder / "uploads")
    library.add(folder / "a", "it")
    return ModelWorker(read_base(str(base)), library, uploads).generator


def events_of(generator: Generator, **settings):
    """Return the events of a request."""
    events = []
    generator(GenerateRequest(**SETTINGS | settings), threading.Event(), events.append)
    return events


def test_an_image_is_that_of_generate_and_every_step_has_a_preview(base, generator):
    scale = read_base(str(base)).guidance_scale
    assert scale == GUIDANCE[base.name]
    adapters = (AdapterUse(name="it"),)
    *steps, last = events_of(generator, guidance_scale=scale, adapters=adapters)
    assert [type(step) for step in steps] == [Progress, Progress]
    assert isinstance(last, Generated)
    for step in steps:
        with Image.open(io.BytesIO(step.preview)) as preview:
            assert preview.size == (320, round(320 * 32 / 48))
    pipe = load_pipeline(str(base))
    options = {"height": 32, "width": 48, "num_inference_steps": 2, "guidance_scale": scale}
    plain = generate_image(pipe, "a sks dog", 3, **options)
    load_hra_weights(pipe, generator._library.entry("it").folder)
    assert np.array_equal(last.image, generate_image(pipe, "a sks dog", 3, **options))
    assert not np.array_equal(last.image, plain)


def test_an_initial_image_is_changed_or_refused_by_name(base, generator):
    digest = generator._uploads.save(Image.new("RGB", (30, 20), "red"))
    if base.name.startswith("flux-2"):
        with pytest.raises(
            ConfigError, match=r"A Flux2(Klein)?Pipeline cannot start from an image: remove the start image"
        ):
            events_of(generator, image=digest)
        return
    *_, last = events_of(generator, image=digest, guidance_scale=2.0)
    assert last.image.size == (48, 32)
    assert not np.array_equal(last.image, events_of(generator, guidance_scale=2.0)[-1].image)


def test_previews_show_packed_latents_as_unpacked_ones(base):
    pipe = load_pipeline(str(base))
    space = LatentSpace(pipe.vae)
    latents, _ = space.encode_images(torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    preview = Preview(pipe.vae, torch.device("cpu"))
    expected = preview(latents)
    if base.name.startswith("flux-2"):
        packed = pipe._pack_latents(latents)
    elif hasattr(pipe, "_pack_latents"):
        packed = pipe._pack_latents(latents, *latents.shape)
    else:
        packed = latents
    assert preview(packed, 32 / 48) == expected


def test_the_longest_tokenizer_decides_on_the_end_of_a_prompt(base, generator):
    prompt = 100 * "x"
    assert generator.truncated_text(prompt) == ""
    if base.name in ("flux-1", "chroma"):
        assert generator.truncated_text(5 * prompt + 20 * "y") == 10 * "y"
