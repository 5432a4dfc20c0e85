"""A control of a transformer in the studio: imported, and generating the image of its pipeline, beside a subject."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hra_diffusion import load_hra_control, load_hra_weights, save_hra_control, set_hra_adapters
from hra_diffusion.control import Control, make_annotator, make_encoder
from hra_diffusion.pipelines import generate_image, load_pipeline
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.conditions import AS_TRAINED, make_condition
from hra_diffusion.studio.engine.generation.events import Generated
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.models.base import read_base
from hra_diffusion.studio.engine.models.model_worker import ModelWorker
from hra_diffusion.studio.engine.uploads import Uploads
from tests.pipelines.conftest import rotated
from tests.versions import transformer_families

pytestmark = [transformer_families, pytest.mark.slow]


@pytest.fixture
def folders(tiny_transformer, tmp_path):
    """The folders of the tiny FLUX.2 klein, of a control of edges and of a subject."""
    base = tiny_transformer("flux-2-klein")
    pipe = load_pipeline(str(base))
    rotated(pipe.transformer, ["to_q"], rank=2, seed=3, angle=1.0).save_pretrained(tmp_path / "subject" / "transformer")
    pipe, generator = load_pipeline(str(base)), torch.Generator().manual_seed(0)
    encoder = make_encoder(pipe, make_annotator("canny"), generator)
    with torch.no_grad():
        weight = encoder.embedding.conv_out.weight
        weight.copy_(3 * torch.randn(weight.shape, generator=generator))
    pipe.transformer = rotated(pipe.transformer, ["to_q", "to_v"], rank=2, seed=1, angle=1.0)
    control = Control(encoder=encoder, adapter_name="default")
    return base, save_hra_control(pipe, control, tmp_path / "canny"), tmp_path / "subject"


def test_the_studios_image_is_that_of_the_pipeline(folders, tmp_path):
    base, control_folder, subject = folders
    library, uploads = Library(tmp_path / "library"), Uploads(tmp_path / "uploads")
    library.add(control_folder, "edges")
    library.add(subject, "subject")
    entry = library.entry("edges")
    assert entry.annotator == "canny"
    image = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(image).rectangle((8, 6, 22, 27), fill="blue")
    condition = make_condition(image, entry, AS_TRAINED, (48, 32))
    generator = ModelWorker(read_base(str(base)), library, uploads).generator
    request = GenerateRequest(
        prompt="a dog",
        steps=2,
        width=48,
        height=32,
        seed=3,
        guidance_scale=3.0,
        adapters=(AdapterUse(name="edges", strength=0.5), AdapterUse(name="subject", strength=0.75)),
        condition=uploads.save(condition),
    )
    events = []
    generator(request, threading.Event(), events.append)
    assert isinstance(events[-1], Generated)
    pipe = load_pipeline(str(base))
    control = load_hra_control(pipe, control_folder)
    load_hra_weights(pipe, subject, "subject")
    set_hra_adapters(pipe, "subject", 0.75)
    options = {"height": 32, "width": 48, "num_inference_steps": 2, "guidance_scale": 3.0}
    plain = generate_image(pipe, "a dog", 3, **options)
    with control.guiding(pipe, image, strength=0.5):
        expected = generate_image(pipe, "a dog", 3, **options)
    assert np.array_equal(events[-1].image, expected)
    assert not np.array_equal(plain, expected)
