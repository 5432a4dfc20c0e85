"""From a training job to the library, a grid, a LoRA and a merged model: the studio with each family of transformers.

The commands `evaluate` and `import-lora` follow on the same adapter.
"""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from hra_diffusion import pipelines
from hra_diffusion.cli.main import main
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.exporting import import_adapter, write_lora, write_merged_model, zip_folder
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.grid import Axis, Grid
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.session import Session, job_defaults
from hra_diffusion.studio.engine.training.job import Status
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import SETTINGS_FILE, Preset, TrainingJob
from hra_diffusion.training.config.file import with_values
from tests import models
from tests.versions import transformer_families

pytestmark = [transformer_families, pytest.mark.slow]

REQUEST = GenerateRequest(prompt="a sks dog", steps=2, width=32, height=32, seed=3, guidance_scale=2.0)
ADAPTED = replace(REQUEST, adapters=(AdapterUse(name="dog"),))


class Studio(NamedTuple):
    """A studio with the adapter of a finished training job, "dog"."""

    session: Session
    run: Path


@pytest.fixture(scope="module", params=models.TRANSFORMERS)
def studio(request, tiny_transformer, tmp_path_factory):
    """A studio on a tiny model of each family."""
    folder = tmp_path_factory.mktemp("studio")
    session = Session(StudioConfig(base=str(tiny_transformer(request.param)), folder=folder / "studio"))
    Image.new("RGB", (40, 30), "red").save(folder / "photo.png")
    preset = Preset(steps=2, class_images=1, validations=1, rank=2, inference_steps=2)
    job = TrainingJob(name="dog", subject="dog", images=(TrainingImage(file=folder / "photo.png"),), preset=preset)
    run = session.jobs.folder / "dog"
    defaults = with_values(job_defaults(session.worker.base), {"resolution": 32})
    job.write(run, job.config(session.worker.base.source, defaults, run))
    assert main(["train", "--config", str(run / SETTINGS_FILE), "--learning_rate", "1.5"]) == 0
    yield Studio(session, run)
    session.worker.close()


def pixels(session: Session, request: GenerateRequest) -> np.ndarray:
    """Return the image of a request."""
    (saved,) = [event for event in session.generate(request, "me") if isinstance(event, SavedImage)]
    return np.asarray(saved.image).astype(int)


def test_a_finished_job_is_an_adapter_and_its_images_are_restored_and_compared(studio):
    session = studio.session
    job = session.job("dog")
    assert (job.status, job.error) == (Status.FINISHED, None)
    assert session.library.entry("dog").trigger == "a photo of a sks dog"
    with Image.open(studio.run / "before_after.png") as sheet:
        assert np.asarray(sheet).std() > 1
    (saved,) = [event for event in session.generate(ADAPTED, "me") if isinstance(event, SavedImage)]
    restored, changes = session.restore(saved.path)
    assert (restored, changes) == (ADAPTED, [])
    before = pixels(session, ADAPTED.without_adapters())
    assert np.array_equal(before, pixels(session, REQUEST))
    assert np.abs(before - np.asarray(saved.image)).max() > 1


def test_the_cells_of_a_grid_are_the_images_of_their_requests(studio):
    session = studio.session
    session.job("dog")
    grid = Grid.from_request(ADAPTED, Axis.parse("strength", "0, 1"), Axis.parse("adapter", "none, dog"))
    cells = [event.image for event in session.generate_grid(grid, "me") if isinstance(event, SavedImage)]
    plain, adapted = pixels(session, REQUEST), pixels(session, ADAPTED)
    for cell, expected in zip(cells, (plain, plain, plain, adapted), strict=True):
        assert np.array_equal(np.asarray(cell), expected)
    assert grid.compose(cells).size > (64, 64)


def test_a_merged_model_and_an_imported_lora_generate_the_image_of_the_adapter(studio, tmp_path):
    session, library = studio.session, studio.session.library
    entry = session.job("dog") and library.entry("dog")
    adapted = pixels(session, ADAPTED)
    file = write_merged_model(session.worker, ADAPTED.adapters, tmp_path, "mean", "fp32")
    with zipfile.ZipFile(file) as opened:
        opened.extractall(tmp_path)
    pipe = pipelines.load_pipeline(str(tmp_path / file.stem))
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0}
    merged = np.asarray(pipelines.generate_image(pipe, "a sks dog", 3, **options)).astype(int)
    assert np.abs(merged - adapted).max() <= 1
    lora = write_lora(session.worker, entry, tmp_path, "kohya", 1.0, "fp32")
    copy = zip_folder(shutil.copytree(entry.folder, tmp_path / "copy"))
    for name, source in {"lora": lora, "copy": copy}.items():
        _, lost = import_adapter(session.worker, library, [source], name)
        assert lost < 1e-4
        again = pixels(session, replace(REQUEST, adapters=(AdapterUse(name=name),)))
        assert np.abs(again - adapted).max() <= 1
    base = ["--pretrained_model_name_or_path", session.worker.base.source]
    assert main(["import-lora", str(lora), str(tmp_path / "imported"), *base]) == 0
    config = json.loads((tmp_path / "imported" / "transformer" / "adapter_config.json").read_text("utf-8"))
    assert config["r"] == 4  # 2 r reflections for a LoRA of rank r


def test_the_run_is_evaluated(studio, clip_folder):
    flags = ["--num_contexts", "1", "--num_images", "1", "--clip", str(clip_folder)]
    assert main(["evaluate", str(studio.run), *flags, "--batch_size", "2"]) == 0
    record = json.loads((studio.run / "metrics.json").read_text("utf-8"))
    names = {measure["name"] for measure in record["measures"]}
    assert names >= {"subject fidelity, CLIP-I (tiny-clip)", "drift, class (tiny-clip)"}
    assert record["plan"]["guidance_scale"] == studio.session.worker.base.guidance_scale
