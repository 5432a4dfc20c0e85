"""New words: learned with an adapter, saved beside it, known in a pipeline as long as the adapter is there."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from hra_diffusion.cli.inspect import InspectConfig, report
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
    """A run that has taken its steps."""
    run = DreamBooth(config)
    list(run.steps())
    return run


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_new_word_means_at_first_what_it_means_without_its_brackets(config):
    run = DreamBooth(with_values(config, {"num_new_tokens_per_abstraction": 3}))
    vectors = token_embeddings(run.pipe)["text_encoder"].vectors()
    tokenizer, embedding = run.pipe.tokenizer, run.pipe.text_encoder.get_input_embeddings()
    spelled = embedding(torch.tensor(tokenizer("sks", add_special_tokens=False).input_ids))
    torch.testing.assert_close(vectors, spelled)
    concept = DreamBooth(with_values(config, {"initializer_concept": "d"}))
    (letter,) = tokenizer("d", add_special_tokens=False).input_ids
    torch.testing.assert_close(
        token_embeddings(concept.pipe)["text_encoder"].vectors(), embedding.weight[letter].expand(2, -1)
    )


def test_new_words_turn_and_keep_their_length_and_nothing_else_of_the_text_encoder_changes(config):
    run = DreamBooth(config)
    embedding = token_embeddings(run.pipe)["text_encoder"]
    start, before = embedding.vectors().detach(), weights(run.pipe.text_encoder)
    records = list(run.steps())
    end = embedding.vectors().detach()
    turned = torch.arccos(torch.cosine_similarity(start, end))
    assert (turned > 0.1).all()
    torch.testing.assert_close(end.norm(dim=1), start.norm(dim=1))
    assert records[-1].learning_rates == {"text_encoder": pytest.approx(0.3), "unet": pytest.approx(0.3)}
    after = weights(run.pipe.text_encoder)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loaded_adapter_brings_its_words_and_takes_them_along_when_it_goes(run, tiny_sd, tmp_path):
    folder = run.save()
    wanted = generate_image(run.pipe, PROMPT, 0, **OPTIONS)
    pipe = load_pipeline(str(tiny_sd))
    tokenizer, embedding = pipe.tokenizer, pipe.text_encoder.get_input_embeddings()
    without = generate_image(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, folder)
    assert generate_image(pipe, PROMPT, 0, **OPTIONS) == wanted
    saved = save_hra_weights(pipe, tmp_path / "again")
    file = "tokens/text_encoder/sks.safetensors"
    assert (saved / file).read_bytes() == (folder / file).read_bytes()
    pipe.save_pretrained(tmp_path / "base")
    assert not token_embeddings(load_pipeline(str(tmp_path / "base")))
    assert load_pipeline(str(tmp_path / "base")).tokenizer.get_vocab() == tokenizer.get_vocab()
    unload_hra_weights(pipe)
    assert pipe.tokenizer is tokenizer
    assert pipe.text_encoder.get_input_embeddings() is embedding
    assert generate_image(pipe, PROMPT, 0, **OPTIONS) == without != wanted


def test_diffusers_reads_the_words_and_gives_them_the_same_vectors(run, tiny_sd):
    path = run.save() / "tokens" / "text_encoder" / "sks.safetensors"
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    pipe.load_textual_inversion(str(path), use_safetensors=True)
    learned = pipe.text_encoder.get_input_embeddings().weight[-2:]
    assert torch.equal(learned, load_file(path)["<sks>"])
    ours = token_embeddings(run.pipe)["text_encoder"]
    assert torch.equal(learned, ours.vectors())
    spelled = [each.maybe_convert_prompt(PROMPT, each.tokenizer) for each in (pipe, run.pipe)]
    assert spelled == ["a photo of a <sks> <sks>_1 dog"] * 2
    ids = [each.tokenizer(text).input_ids for each, text in zip((pipe, run.pipe), spelled, strict=True)]
    assert ids[0] == ids[1]


def test_a_merged_model_has_the_words_in_its_own_table(run, tiny_sd, tmp_path):
    wanted = generate_image(run.pipe, PROMPT, 0, **OPTIONS)
    merged = StableDiffusionPipeline.from_pretrained(
        merge_hra(tiny_sd, tmp_path / "merged", {run.save(): 1.0}), use_safetensors=True
    )
    merged.set_progress_bar_config(disable=True)
    difference = np.asarray(generate_image(merged, PROMPT, 0, **OPTIONS)).astype(int) - np.asarray(wanted)
    assert np.abs(difference).max() <= 1


def test_two_adapters_may_not_have_the_same_word_and_a_word_goes_with_its_own_adapter(run, tiny_sd, tmp_path):
    folder, pipe = run.save(), load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, folder, "first")
    with pytest.raises(ConfigError, match="'first' has a token <sks> of its own"):
        load_hra_weights(pipe, folder, "second")
    wanted = generate_image(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, folder, "first", hotswap=True)
    assert generate_image(pipe, PROMPT, 0, **OPTIONS) == wanted
    (folder / "tokens/text_encoder/sks.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterFileError, match="no intact safetensors"):
        load_hra_weights(pipe, folder, "third")


def test_inspect_names_the_words(run):
    run.save()
    assert "new words of text_encoder: <sks> (2 vectors)" in list(report(InspectConfig(adapter=run.folder)))


def test_without_a_word_in_brackets_or_a_place_for_one_there_is_nothing_to_learn(config, tiny_sd3):
    with pytest.raises(ConfigError, match="has none: write"):
        DreamBooth(with_values(config, {"instance_prompt": "a photo of a sks dog"}))
    with pytest.raises(ConfigError, match="StableDiffusion3Pipeline, which has no textual inversion"):
        DreamBooth(with_values(config, {"pretrained_model_name_or_path": str(tiny_sd3)}))


def test_new_words_are_written_in_small_letters(config):
    with pytest.raises(ConfigError, match="The new word <Two> has capitals, which the model does not see: write <two>"):
        DreamBooth(with_values(config, {"instance_prompt": "a <one> and <Two> dog"}))


def test_a_word_that_no_caption_has_cannot_be_learned(config, images):
    for image in images.glob("*.*"):
        image.with_suffix(".txt").write_text("a photo of a dog")
    with pytest.raises(ConfigError, match=r"learn <sks>, which no caption has"):
        DreamBooth(config)
    next(images.glob("*.txt")).unlink()  # one image shows the prompt
    DreamBooth(config)


def test_a_subject_without_a_prompt_gets_a_new_word(config):
    assert DreamBooth(with_values(config, {"instance_prompt": None})).subjects[0].prompt == PROMPT
