"""Checkpoints of training jobs are adapters by name, in requests, grids and PNGs."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.grid import Axis, Grid
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.training.outputs.checkpoint import REST

REQUEST = GenerateRequest(
    prompt="a cat", steps=2, width=32, height=32, seed=3, adapters=(AdapterUse(name="amber", strength=1.5),)
)


@pytest.fixture(scope="module")
def job(session, adapter_folders):
    """A training job named as an adapter, with the checkpoints 50 and 100: another adapter and the same one."""
    run = session.jobs.folder / "amber"
    for step, name in {50: "birch", 100: "amber"}.items():
        shutil.copytree(adapter_folders[name], run / f"checkpoint-{step}" / "adapter")
        (run / f"checkpoint-{step}" / REST).write_text("{}")
    yield run
    shutil.rmtree(run)


def test_a_checkpoint_is_an_adapter_that_cannot_be_changed(session, job):
    entry = session.library.entry("amber/checkpoint-50")
    assert (entry.name, entry.rank) == ("amber/checkpoint-50", 2)
    assert entry.folder == job / "checkpoint-50" / "adapter"
    for unknown in ("amber/checkpoint-7", "none/checkpoint-50"):
        assert session.library.find(unknown) is None
        with pytest.raises(ConfigError, match="has no checkpoint"):
            session.library.entry(unknown)
    for outside in ("../runs/amber/checkpoint-50", "/checkpoint-50", "../checkpoint-50"):
        with pytest.raises(ConfigError, match="is no name"):
            session.library.entry(outside)
    with pytest.raises(ConfigError, match="is a checkpoint of a training job"):
        session.library.delete("amber/checkpoint-50")


@pytest.mark.slow
def test_the_cells_of_a_checkpoint_axis_are_the_images_of_their_adapters(session, job):
    def images(requests) -> list[SavedImage]:
        return [event for one in requests for event in session.generate(one, "me") if isinstance(event, SavedImage)]

    grid = Grid.from_request(REQUEST, Axis.parse("checkpoint", "50, 100, final"), Axis.parse("seed", "3"))
    cells = [event for event in session.generate_grid(grid, "me") if isinstance(event, SavedImage)]
    birch = replace(REQUEST, adapters=(AdapterUse(name="birch", strength=1.5),))
    for cell, expected in zip(cells, images([birch, REQUEST, REQUEST]), strict=True):
        assert np.array_equal(np.asarray(cell.image), np.asarray(expected.image))
    assert session.restore(cells[0].path) == (grid.rows[0][0], [])
    missing = Grid.from_request(REQUEST, Axis.parse("checkpoint", "50, 60"), Axis.parse("seed", "3"))
    with pytest.raises(ConfigError, match="no checkpoint '60'; known are: 50, 100"):  # before the first image
        next(session.generate_grid(missing, "me"))
