"""diffusers' own textual inversion, beside adapters: before them, after them, and gone again."""

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
def with_word(pipe, make_adapter, tmp_path, tiny_sd):
    """An adapter that knows a word of its own, <sks>."""
    folder = make_adapter(pipe, tmp_path / "word", base=str(tiny_sd))
    files = token_files({"text_encoder": {"<sks>": vectors(2, 2)}})
    write_together({folder / name: content for name, content in files.items()})
    return folder


def encoded(pipe, prompt: str) -> torch.Tensor:
    return pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]


def test_it_means_the_same_whether_it_comes_before_an_adapter_or_after(pipe, load, adapters, tiny_sd, toy):
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
    for each in (pipe, other):
        unload_hra_weights(each)
        assert torch.equal(encoded(each, PROMPT), alone)
        each.unload_textual_inversion()
        assert torch.equal(encoded(each, PROMPT), plain)


def test_it_is_unloaded_from_under_an_adapter(pipe, adapters, toy):
    load_hra_weights(pipe, adapters / "a")
    adapted = encoded(pipe, PROMPT)
    pipe.load_textual_inversion(toy, use_safetensors=True)
    assert not torch.allclose(encoded(pipe, PROMPT), adapted)
    pipe.unload_textual_inversion()
    assert torch.equal(encoded(pipe, PROMPT), adapted)


def test_words_of_an_adapter_come_after_those_of_textual_inversion(pipe, load, tiny_sd, with_word, toy):
    """Each word's vectors stand where it is written, whatever other words there are."""
    other = load(StableDiffusionPipeline, tiny_sd)
    load_hra_weights(other, with_word)
    pipe.load_textual_inversion(toy, use_safetensors=True)
    alone = encoded(pipe, PROMPT)
    load_hra_weights(pipe, with_word)
    assert torch.equal(encoded(pipe, "a <sks> dog"), encoded(other, "a <sks> dog"))
    assert not torch.allclose(encoded(pipe, "a <sks> <toy> dog"), encoded(pipe, "a <sks> dog"))
    unload_hra_weights(pipe)
    assert torch.equal(encoded(pipe, PROMPT), alone)


def test_under_words_of_an_adapter_it_is_refused_and_nothing_changes(pipe, with_word, toy):
    load_hra_weights(pipe, with_word)
    before = encoded(pipe, "a <sks> dog")
    for change in (lambda: pipe.load_textual_inversion(toy, use_safetensors=True), pipe.unload_textual_inversion):
        with pytest.raises(ConfigError, match=r"<sks>.*before load_hra_weights"):
            change()
    assert torch.equal(encoded(pipe, "a <sks> dog"), before)
    unload_hra_weights(pipe)
    pipe.load_textual_inversion(toy, use_safetensors=True)
    assert "<toy>" in pipe.tokenizer.get_vocab()
