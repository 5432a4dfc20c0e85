"""diffusers' textual inversion beside adapters: loaded before them, after them, and unloaded again."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from hra_diffusion import load_hra_weights, unload_hra_weights
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.tokens import token_files

PROMPT = "a <toy> dog"


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def toy(tmp_path):
    """A file of textual inversion: <toy>, of two vectors."""
    save_file({"<toy>": vectors(2, 1)}, tmp_path / "toy.safetensors")
    return str(tmp_path / "toy.safetensors")


@pytest.fixture
def with_token(pipe, make_adapter, tmp_path, tiny_sd):
    """An adapter with a learned token, <sks>."""
    folder = make_adapter(pipe, tmp_path / "word", base=str(tiny_sd))
    files = token_files({"text_encoder": {"<sks>": vectors(2, 2)}})
    write_together({folder / name: content for name, content in files.items()})
    return folder


def encoded(pipe, prompt: str) -> torch.Tensor:
    return pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]


def test_textual_inversion_gives_the_same_before_and_after_an_adapter(pipe, load, adapters, tiny_sd, toy):
    other = load(StableDiffusionPipeline, tiny_sd)
    plain = encoded(pipe, PROMPT)
    pipe.load_textual_inversion(toy, use_safetensors=True)
    alone = encoded(pipe, PROMPT)
    load_hra_weights(pipe, adapters / "a")
    load_hra_weights(other, adapters / "a")
    other.load_textual_inversion(toy, use_safetensors=True)
    both = encoded(pipe, PROMPT)
    assert torch.equal(both, encoded(other, PROMPT))
    assert not torch.allclose(both, alone)
    for inverted in (pipe, other):
        unload_hra_weights(inverted)
        assert torch.equal(encoded(inverted, PROMPT), alone)
        inverted.unload_textual_inversion()
        assert torch.equal(encoded(inverted, PROMPT), plain)


def test_textual_inversion_is_unloaded_from_under_an_adapter(pipe, adapters, toy):
    load_hra_weights(pipe, adapters / "a")
    adapted = encoded(pipe, PROMPT)
    pipe.load_textual_inversion(toy, use_safetensors=True)
    assert not torch.allclose(encoded(pipe, PROMPT), adapted)
    pipe.unload_textual_inversion()
    assert torch.equal(encoded(pipe, PROMPT), adapted)


def test_tokens_of_an_adapter_follow_those_of_textual_inversion(pipe, load, tiny_sd, with_token, toy):
    """Every token has its vectors at its position in the prompt, whatever the other tokens."""
    other = load(StableDiffusionPipeline, tiny_sd)
    load_hra_weights(other, with_token)
    pipe.load_textual_inversion(toy, use_safetensors=True)
    alone = encoded(pipe, PROMPT)
    load_hra_weights(pipe, with_token)
    assert torch.equal(encoded(pipe, "a <sks> dog"), encoded(other, "a <sks> dog"))
    assert not torch.allclose(encoded(pipe, "a <sks> <toy> dog"), encoded(pipe, "a <sks> dog"))
    unload_hra_weights(pipe)
    assert torch.equal(encoded(pipe, PROMPT), alone)


def test_textual_inversion_is_refused_under_tokens_of_an_adapter_and_nothing_changes(pipe, with_token, toy):
    load_hra_weights(pipe, with_token)
    before = encoded(pipe, "a <sks> dog")
    for change in (lambda: pipe.load_textual_inversion(toy, use_safetensors=True), pipe.unload_textual_inversion):
        with pytest.raises(ConfigError, match=r"<sks>.*before load_hra_weights"):
            change()
    assert torch.equal(encoded(pipe, "a <sks> dog"), before)
    unload_hra_weights(pipe)
    pipe.load_textual_inversion(toy, use_safetensors=True)
    assert "<toy>" in pipe.tokenizer.get_vocab()
