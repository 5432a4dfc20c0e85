"""The digest of a base model: independent of adapters and processes, different for different models."""

import pytest
from diffusers import DDIMScheduler

from hra_diffusion.pipelines import load_hra_weights, load_pipeline
from hra_diffusion.training.model_digest import model_digest


@pytest.fixture
def pipe(tiny_sd):
    return load_pipeline(str(tiny_sd))


def test_adapters_do_not_change_the_digest(pipe, trained):
    before = model_digest(pipe)
    load_hra_weights(pipe, trained)
    assert model_digest(pipe) == before


def test_another_model_or_scheduler_has_another_digest(pipe, make_model, tmp_path):
    digests = {model_digest(pipe), model_digest(load_pipeline(str(make_model(tmp_path / "other", seed=1))))}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    assert len(digests | {model_digest(pipe)}) == 3


def test_the_order_of_diffusers_defaults_does_not_change_the_digest(pipe):
    """diffusers keeps them in a set, whose order differs between processes."""
    digests = set()
    for order in (["eta", "beta_end"], ["beta_end", "eta"]):
        pipe.scheduler.register_to_config(_use_default_values=order)
        digests.add(model_digest(pipe))
    assert len(digests) == 1
