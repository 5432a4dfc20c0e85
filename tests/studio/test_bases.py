"""The studio generates, trains and exports with Stable Diffusion 1, 2 and XL."""

import threading
import time

import pytest

from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.exporting import write_lora
from hra_diffusion.studio.engine.generation.events import Generated, Progress
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.job import Status
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import Preset, TrainingJob

pytestmark = pytest.mark.slow


@pytest.fixture(params=["tiny_sd", "tiny_sd_v", "tiny_sdxl"])
def studio(request, tmp_path):
    """A studio on a base of each family."""
    session = Session(StudioConfig(base=str(request.getfixturevalue(request.param)), folder=tmp_path / "studio"))
    yield session
    session.worker.close()


def test_every_family_generates_trains_and_exports(studio, subject):
    request = GenerateRequest(prompt="a cat", steps=2, width=32, height=32)

    def generate(request: GenerateRequest) -> bytes:
        events = list(studio.worker.stream(request, threading.Event()))
        assert [event.step for event in events if isinstance(event, Progress)] == [1, 2]
        (image,) = (event.image for event in events if isinstance(event, Generated))
        return image.tobytes()

    preset = Preset(steps=2, rank=2, class_images=0, validations=1, inference_steps=2)
    images = tuple(TrainingImage(file=path) for path in subject[:2])
    studio.train(TrainingJob(name="our cat", images=images, subject="cat", preset=preset))
    end = time.monotonic() + 240
    while (job := studio.job("our cat")).status is Status.RUNNING and time.monotonic() < end:
        time.sleep(0.2)
    assert job.status is Status.FINISHED, job.error

    entry = studio.library.entry("our cat")
    assert set(entry.components) >= {"unet", "text_encoder"}
    with_adapter = GenerateRequest(**vars(request) | {"adapters": (AdapterUse(name="our cat", strength=1.5),)})
    assert generate(with_adapter) != generate(request)
    assert write_lora(studio.worker, entry, studio.cache, "diffusers", 1.0, "fp32").stat().st_size > 0
