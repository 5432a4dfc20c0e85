"""Requests that bind adapters to their prompt: the adapters whose trigger word it holds."""

from dataclasses import replace

import pytest

from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.bound_adapters import with_named_adapters
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest
from tests.pipelines.conftest import load_kind, write_adapter


@pytest.fixture(scope="module")
def library(tiny_sd, tmp_path_factory):
    """Two adapters of a base with trigger words, and one of another base."""
    from diffusers import StableDiffusionPipeline

    folder, pipe = tmp_path_factory.mktemp("library"), load_kind(StableDiffusionPipeline, tiny_sd)
    for name, base in {"dog": "base", "cat": "base", "other": "elsewhere"}.items():
        write_adapter(pipe, folder / name, text_encoders=None, base=base)
        prompts = f'instance_prompt = "a sks {name}"\nclass_prompt = "a {name}"\n'
        (folder / name / "config.toml").write_text(f'pretrained_model_name_or_path = "{base}"\n{prompts}')
    return Library(folder)


def test_a_prompt_names_the_chosen_adapters_or_without_any_those_of_the_library(library):
    request = GenerateRequest(prompt="a (sks:1.2) dog", bind="prompt")
    named = with_named_adapters(request, library, "base")
    assert named == replace(request, adapters=(AdapterUse(name="dog"),), bind="none")
    chosen = replace(request, adapters=(AdapterUse(name="dog", strength=0.5), AdapterUse(name="cat")))
    assert with_named_adapters(chosen, library, "base").adapters == (AdapterUse(name="dog", strength=0.5),)
    assert with_named_adapters(replace(chosen, prompt="a house"), library, "base").adapters == ()
    assert with_named_adapters(replace(request, prompt="a sks other"), library, "base").adapters == ()
    unbound = replace(chosen, bind="none")
    assert with_named_adapters(unbound, library, "base") == unbound


def test_the_json_of_a_request_has_the_binding(library):
    request = GenerateRequest(prompt="a dog", bind="prompt")
    assert GenerateRequest.from_json(request.to_json()) == request
    assert "bind" not in GenerateRequest().to_json()
