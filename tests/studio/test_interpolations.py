"""Adapters between two others are adapters by name, in requests and grids."""

from dataclasses import replace

import numpy as np
import pytest

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from hra_diffusion.studio.engine.images.grid import Axis, Grid
from hra_diffusion.studio.engine.images.image_store import SavedImage

AMBER, BIRCH = AdapterUse(name="amber", strength=1.0), AdapterUse(name="birch", strength=1.0)
REQUEST = GenerateRequest(prompt="a cat", steps=2, width=32, height=32, seed=3, adapters=(AMBER, BIRCH))


def grid_of(values, request=REQUEST) -> Grid:
    return Grid.from_request(request, Axis.parse("interpolation", values), Axis.parse("seed", "3"))


def test_an_adapter_between_two_others_is_computed_once_and_cannot_be_changed(session):
    entry = session.library.entry("amber/interpolated-0.5/birch")
    assert (entry.name, entry.rank, entry.base) == (
        "amber/interpolated-0.5/birch",
        4,
        session.library.entry("amber").base,
    )
    written = entry.stamp
    assert session.library.entry("amber/interpolated-0.50/birch") == entry
    assert session.library.entry(entry.name).stamp == written
    assert session.library.entry("birch/interpolated-0.5/amber").folder != entry.folder
    with pytest.raises(ConfigError, match="between two adapters: it can be used, but not changed"):
        session.library.delete(entry.name)
    assert entry.folder.is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("amber/interpolated-7/birch", "position from -1 to 2"),
        ("amber/interpolated-x/birch", "is no adapter between two others"),
        ("amber/interpolated-./birch", "is no adapter between two others"),
        ("../interpolated-0.5/birch", r"no adapter named '\.\.'"),
        ("amber/interpolated-0.5/none", "no adapter named 'none'"),
        ("amber/interpolated-0.5/" + "b/interpolated-0.5/" * 100, "is no adapter between two others"),
    ],
)
def test_other_names_are_refused(session, name, message):
    with pytest.raises(ConfigError, match=message):
        session.library.entry(name)


def test_an_interpolation_axis_needs_two_adapters(session):
    with pytest.raises(ConfigError, match="needs two adapters"):
        grid_of("0, 1", replace(REQUEST, adapters=(AMBER,)))
    with pytest.raises(ConfigError, match="position from -1 to 2"):
        grid_of("0, 3")


@pytest.mark.slow
def test_the_ends_of_an_interpolation_axis_are_the_images_of_both_adapters(session):
    def images(events) -> list[np.ndarray]:
        return [np.asarray(event.image).astype(float) for event in events if isinstance(event, SavedImage)]

    first, middle, last = images(session.generate_grid(grid_of("0, 0.5, 1"), "me"))
    (amber,), (birch,) = (images(session.generate(replace(REQUEST, adapters=(use,)), "me")) for use in (AMBER, BIRCH))
    assert np.abs(first - amber).max() <= 2
    assert np.abs(last - birch).max() <= 2
    assert min(np.abs(middle - amber).mean(), np.abs(middle - birch).mean()) > 1
