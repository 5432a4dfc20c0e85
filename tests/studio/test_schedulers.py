"""Schedulers of the studio: compatible with the model's, with its noise schedule, and of different images."""

import inspect
import threading

import diffusers
import numpy as np
import pytest

from hra_diffusion.studio.engine.generation.events import Generated
from hra_diffusion.studio.engine.generation.requests import MODEL_SCHEDULER, GenerateRequest
from hra_diffusion.studio.engine.generation.schedulers import make_scheduler, scheduler_names, scheduler_of_a1111
from hra_diffusion.studio.engine.models.base import read_base
from tests.versions import transformer_families

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDIMScheduler", BETAS),
        ("PNDMScheduler", BETAS | {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", BETAS | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_schedulers_are_compatible_and_keep_the_noise_schedule(name, settings):
    default = getattr(diffusers, name)(**settings)
    names = scheduler_names(name, dict(default.config))
    assert names[0] == MODEL_SCHEDULER
    assert len(names) >= 4
    for made in (make_scheduler(name, default) for name in names[1:]):
        assert type(made) in default.compatibles
        for key, value in settings.items():
            if key in inspect.signature(type(made)).parameters:
                assert made.config[key] == value
            else:
                assert key == "timestep_spacing"  # no property of the model: noise schedules are kept by all


def test_a_model_of_another_scheduler_has_its_own_alone():
    assert scheduler_names("FlowMatchHeunDiscreteScheduler", {}) == (MODEL_SCHEDULER,)
    assert scheduler_names("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}) == (MODEL_SCHEDULER,)


def test_a1111_writes_the_schedule_type_apart():
    assert scheduler_of_a1111("DPM++ 2M", "Karras") == scheduler_of_a1111("DPM++ 2M Karras") == "DPM++ 2M Karras"
    assert scheduler_of_a1111("Euler a", "Automatic") == "Euler a"
    assert scheduler_of_a1111("Restart") is None


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # diffusers' LMS
@pytest.mark.slow
def test_every_scheduler_generates_its_own_image(session):
    images = {}
    for name in session.worker.base.schedulers:
        request = GenerateRequest(prompt="a cat", steps=4, width=32, height=32, seed=3, scheduler=name)
        for _ in range(2 if name in ("DPM++ SDE", "Euler a") else 1):  # random steps, with the request's generator
            events = session.worker.stream(request, threading.Event())
            (pixels,) = (np.asarray(event.image) for event in events if isinstance(event, Generated))
            assert np.array_equal(images.setdefault(name, pixels), pixels)
    assert len({image.tobytes() for image in images.values()}) >= len(images) - 1  # the default is one of them
    assert min(image.std() for image in images.values()) > 1


@transformer_families
@pytest.mark.slow
def test_schedulers_of_zero_snr_and_of_flow_matching_generate_finite_images(tiny_sd_v, tiny_transformer):
    from hra_diffusion.pipelines import generate_image, load_pipeline

    for folder in (tiny_sd_v, tiny_transformer("z-image"), tiny_transformer("flux-1")):
        pipe = load_pipeline(str(folder))
        default, images = pipe.scheduler, set()
        names = read_base(str(folder)).schedulers
        for name in names:
            pipe.scheduler = make_scheduler(name, default)
            image = generate_image(pipe, "a cat", 3, num_inference_steps=4, width=32, height=32, guidance_scale=2.0)
            assert np.asarray(image).std() > 1
            images.add(image.tobytes())
        assert len(images) >= len(names) - 1
