"""Adapters on the pipelines of transformers: swapped, at any strength, fused and unloaded, as on Stable Diffusion."""

from typing import Any

import pytest
import torch

from hra_diffusion import (
    fuse_hra,
    load_hra_weights,
    set_hra_adapters,
    unfuse_hra,
    unload_hra_weights,
    using_hra_adapters,
)
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import generate_image, load_pipeline
from hra_diffusion.training.families import FAMILIES
from tests import models
from tests.pipelines.conftest import rotated
from tests.versions import transformer_families

pytestmark = transformer_families

OPTIONS = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": None}


@pytest.fixture(
    scope="module",
    params=[name if name == "flux-1" else pytest.param(name, marks=pytest.mark.slow) for name in models.TRANSFORMERS],
)
def case(request, tiny_transformer, tmp_path_factory):
    """The pipeline of a tiny model, and the folders of two adapters of it."""
    folder = tmp_path_factory.mktemp("adapters")
    pipe = load_pipeline(str(tiny_transformer(request.param)))
    for seed, name in enumerate("ab"):
        targets = [target for target in FAMILIES[type(pipe).__name__].default_targets if target != "attn.to_out"]
        adapted = rotated(pipe.transformer, targets, rank=2, seed=seed, angle=1.0)
        adapted.save_pretrained(folder / name / "transformer")
        adapted.unload()
    return pipe, folder / "a", folder / "b"


def pixels(pipe) -> torch.Tensor:
    image: Any = generate_image(pipe, "a sks dog", 3, output_type="pt", **OPTIONS)
    return image


def test_adapters_are_swapped_weighted_fused_and_unloaded(case):
    pipe, *folders = case
    base, alone = pixels(pipe), {}
    for name, folder in zip("ab", folders, strict=True):
        load_hra_weights(pipe, folder, name)
        alone[name] = pixels(pipe)
        unload_hra_weights(pipe, name)
        assert torch.equal(pixels(pipe), base)
        assert (alone[name] - base).abs().max() > 1e-3
    for name, folder in zip("ab", folders, strict=True):
        load_hra_weights(pipe, folder, name)
    for name in "ab":
        set_hra_adapters(pipe, name)
        assert torch.equal(pixels(pipe), alone[name])
    with using_hra_adapters(pipe, "a", 0.0):
        assert torch.equal(pixels(pipe), base)
    set_hra_adapters(pipe, "a", 0.5)
    half = pixels(pipe)
    assert min((half - other).abs().max() for other in (base, alone["a"])) > 1e-3
    fuse_hra(pipe)
    assert (pixels(pipe) - half).abs().max() < 1e-4
    unfuse_hra(pipe)
    assert torch.equal(pixels(pipe), half)


def test_blocks_have_their_strengths(case):
    pipe, folder, _ = case
    load_hra_weights(pipe, folder, "c")
    blocks = "layers" if hasattr(pipe.transformer, "layers") else "transformer_blocks"
    count = len(getattr(pipe.transformer, blocks))
    for table, expected in [
        ({blocks: {"block_0": 0.5}}, [0.5] + [1.0] * (count - 1)),
        ({f"{blocks}.0": 0.25}, [0.25] + [1.0] * (count - 1)),
        ({blocks: [number / 8 for number in range(count)]}, [number / 8 for number in range(count)]),
    ]:
        set_hra_adapters(pipe, "c", {"transformer": table})
        for name, layer in pipe.transformer.adapted_layers().items():
            place = name.split(".")
            strength = expected[int(place[1])] if place[0] == blocks else 1.0
            assert layer.mixture == ((("c", strength),),)
    with pytest.raises(ConfigError, match=f"transformer name 'down': give numbers for .*{blocks}"):
        set_hra_adapters(pipe, "c", {"transformer": {"down": 1}})
    with pytest.raises(ConfigError, match=f"needs {count} strengths"):
        set_hra_adapters(pipe, "c", {"transformer": {blocks: [1.0] * (count + 1)}})
    unload_hra_weights(pipe, "c")
