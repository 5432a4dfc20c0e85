"""Textual inversion: tokens trained, saved, loaded and unloaded with an adapter."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from hra_diffusion.cli.inspect import InspectConfig, describe_adapter
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.pipelines import (
    generate_image,
    load_hra_weights,
    load_pipeline,
    merge_hra,
    save_hra_weights,
    token_embeddings,
    unload_hra_weights,
)
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run

PROMPT = "a photo of a <sks> dog"
OPTIONS = {"height": 32, "width": 32, "num_inference_steps": 2}


@pytest.fixture
def config(config):
    values = {
        "instance_prompt": PROMPT,
        "train_text_encoder_ti": True,
        "train_text_encoder": False,
        "with_prior_preservation": False,
        "learning_rate": 0.3,
        "report_to": "none",
    }
    return with_values(config, values)


@pytest.fixture
def run(config):
    """A run after its last step."""
    run = prepare_run(DreamBooth(config))
    list(run.steps())
    return run


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_new_token_starts_with_the_embedding_of_its_word(config):
    run = prepare_run(DreamBooth(with_values(config, {"num_new_tokens_per_abstraction": 3})))
    vectors = token_embeddings(run.pipe)["text_encoder"].vectors()
    tokenizer, embedding = run.pipe.tokenizer, run.pipe.text_encoder.get_input_embeddings()
    expected = embedding(torch.tensor(tokenizer("sks", add_special_tokens=False).input_ids))
    torch.testing.assert_close(vectors, expected)
    concept = prepare_run(DreamBooth(with_values(config, {"initializer_concept": "d"})))
    (letter,) = tokenizer("d", add_special_tokens=False).input_ids
    torch.testing.assert_close(
        token_embeddings(concept.pipe)["text_encoder"].vectors(), embedding.weight[letter].expand(2, -1)
    )


def test_token_embeddings_rotate_with_constant_length_and_the_text_encoder_is_unchanged(config):
    run = prepare_run(DreamBooth(config))
    embedding = token_embeddings(run.pipe)["text_encoder"]
    start, before = embedding.vectors().detach(), weights(run.pipe.text_encoder)
    records = list(run.steps())
    end = embedding.vectors().detach()
    angles = torch.arccos(torch.cosine_similarity(start, end))
    assert (angles > 0.1).all()
    torch.testing.assert_close(end.norm(dim=1), start.norm(dim=1))
    assert records[-1].learning_rates == {"text_encoder": pytest.approx(0.3), "unet": pytest.approx(0.3)}
    after = weights(run.pipe.text_encoder)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tokens_are_loaded_and_unloaded_with_their_adapter(run, tiny_sd, tmp_path):
    folder = run.save()
    expected = generate_image(run.pipe, PROMPT, 0, **OPTIONS)
    pipe = load_pipeline(str(tiny_sd))
    tokenizer, embedding = pipe.tokenizer, pipe.text_encoder.get_input_embeddings()
    without = generate_image(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, folder)
    assert generate_image(pipe, PROMPT, 0, **OPTIONS) == expected
    saved = save_hra_weights(pipe, tmp_path / "again")
    file = "tokens/text_encoder/sks.safetensors"
    assert (saved / file).read_bytes() == (folder / file).read_bytes()
    pipe.save_pretrained(tmp_path / "base")
    assert not token_embeddings(load_pipeline(str(tmp_path / "base")))
    assert load_pipeline(str(tmp_path / "base")).tokenizer.get_vocab() == tokenizer.get_vocab()
    unload_hra_weights(pipe)
    assert pipe.tokenizer is tokenizer
    assert pipe.text_encoder.get_input_embeddings() is embedding
    assert generate_image(pipe, PROMPT, 0, **OPTIONS) == without != expected


def test_diffusers_loads_the_tokens_with_the_same_embeddings(run, tiny_sd):
    path = run.save() / "tokens" / "text_encoder" / "sks.safetensors"
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    pipe.load_textual_inversion(str(path), use_safetensors=True)
    learned = pipe.text_encoder.get_input_embeddings().weight[-2:]
    assert torch.equal(learned, load_file(path)["<sks>"])
    ours = token_embeddings(run.pipe)["text_encoder"]
    assert torch.equal(learned, ours.vectors())
    converted = [model.maybe_convert_prompt(PROMPT, model.tokenizer) for model in (pipe, run.pipe)]
    assert converted == ["a photo of a <sks> <sks>_1 dog"] * 2
    ids = [model.tokenizer(text).input_ids for model, text in zip((pipe, run.pipe), converted, strict=True)]
    assert ids[0] == ids[1]


def test_a_merged_model_has_the_tokens_in_its_embedding_table(run, tiny_sd, tmp_path):
    expected = generate_image(run.pipe, PROMPT, 0, **OPTIONS)
    merged = StableDiffusionPipeline.from_pretrained(
        merge_hra({run.save(): 1.0}, tmp_path / "merged", base=tiny_sd), use_safetensors=True
    )
    merged.set_progress_bar_config(disable=True)
    difference = np.asarray(generate_image(merged, PROMPT, 0, **OPTIONS)).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


def test_two_adapters_with_the_same_token_are_refused_and_hotswap_replaces_tokens(run, tiny_sd, tmp_path):
    folder, pipe = run.save(), load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, folder, "first")
    with pytest.raises(ConfigError, match="'first' has a token <sks>, too"):
        load_hra_weights(pipe, folder, "second")
    expected = generate_image(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, folder, "first", hotswap=True)
    assert generate_image(pipe, PROMPT, 0, **OPTIONS) == expected
    (folder / "tokens/text_encoder/sks.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterFileError, match="no intact safetensors"):
        load_hra_weights(pipe, folder, "third")


def test_inspect_lists_the_tokens(run):
    run.save()
    assert "tokens of text_encoder: <sks> (2 vectors)" in list(describe_adapter(InspectConfig(adapter=run.folder)))


def test_a_prompt_without_brackets_or_a_family_without_textual_inversion_is_refused(config, tiny_sd3):
    with pytest.raises(ConfigError, match="has none: write"):
        prepare_run(DreamBooth(with_values(config, {"instance_prompt": "a photo of a sks dog"})))
    with pytest.raises(ConfigError, match="StableDiffusion3Pipeline, which has no textual inversion"):
        prepare_run(DreamBooth(with_values(config, {"pretrained_model_name_or_path": str(tiny_sd3)})))


def test_a_new_token_with_capitals_is_refused(config):
    with pytest.raises(ConfigError, match="The new word <Two> has capitals, which the model ignores: write <two>"):
        prepare_run(DreamBooth(with_values(config, {"instance_prompt": "a <one> and <Two> dog"})))


def test_a_token_without_a_caption_is_refused(config, images):
    for image in images.glob("*.*"):
        image.with_suffix(".txt").write_text("a photo of a dog")
    with pytest.raises(ConfigError, match=r"learn <sks>, which no caption has"):
        prepare_run(DreamBooth(config))
    next(images.glob("*.txt")).unlink()  # this image has the prompt as its caption
    prepare_run(DreamBooth(config))


def test_a_subject_without_a_prompt_gets_a_new_token(config):
    assert prepare_run(DreamBooth(with_values(config, {"instance_prompt": None}))).task.subjects[0].prompt == PROMPT
