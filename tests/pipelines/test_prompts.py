"""Prompts of any length and with A1111's weights."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import generate_image, load_pipeline, prompt_options, set_tokens
from hra_diffusion.pipelines.prompt_weights import parse_weights
from tests import models

SMALL = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 3.0}
LONG = "a photo of a sks dog on a beach, in the morning, with a red ball and two small cats beside it"
"""Some 70 tokens of the tiny models, whose chunks have 38."""
CHUNKS = ["a photo of a sks dog on a beach, in the morning,", "with a red ball and two small cats beside it"]


@pytest.fixture(params=["tiny_sd", "tiny_sdxl"])
def kind(request, load):
    folder = request.getfixturevalue(request.param)
    return load(StableDiffusionPipeline if request.param == "tiny_sd" else StableDiffusionXLPipeline, folder)


def encoded(pipe, prompt, **options):
    """Return the pipeline's embeddings of a prompt and of no negative prompt."""
    with torch.no_grad():
        return pipe.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **options
        )


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("", []),
        ("a dog", [("a dog", 1)]),
        ("a (red:1.2) dog", [("a ", 1), ("red", 1.2), (" dog", 1)]),
        ("(a dog)", [("a dog", 1.1)]),
        ("((a) dog:.5)", [("a", 0.55), (" dog", 0.5)]),
        ("[a] dog", [("a", 1 / 1.1), (" dog", 1)]),
        (r"a \(red\) \[dog\] \\", [("a (red) [dog] \\", 1)]),
        ("dog :) (cat", [("dog :) (cat", 1)]),
        ("a:1.2) [dog:1.2) ratio 1:2", [("a:1.2) [dog:1.2) ratio 1:2", 1)]),
        ("(a: b:2)", [("a: b", 2)]),
        ("([a) dog", [("[a", 1.1), (" dog", 1)]),
        ("back\\slash", [("back\\slash", 1)]),
    ],
)
def test_weights_are_read_as_in_a1111_and_other_brackets_are_text(prompt, fragments):
    parsed = parse_weights(prompt)
    assert [text for text, _ in parsed] == [text for text, _ in fragments]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in fragments])


@given(st.text(st.sampled_from("ab ()[]:\\1.2"), max_size=60))
def test_any_prompt_is_read_without_a_loss_of_its_words(prompt):
    text = "".join(fragment.text for fragment in parse_weights(prompt))
    assert [letter for letter in text if letter in "ab"] == [letter for letter in prompt if letter in "ab"]


def test_a_weight_beyond_ten_is_refused():
    with pytest.raises(ConfigError, match="the weight 20 for 'dog': give at most 10"):
        parse_weights("a (dog:20)")
    with pytest.raises(ConfigError, match="at most 10"):
        parse_weights("(" * 40 + "dog" + ")" * 40)


def test_a_short_prompt_without_weights_stays_a_text(kind):
    for prompt in ("a dog", "", "a  dog, :) (", "the ratio 16:9"):
        assert prompt_options(kind, prompt) == {"prompt": prompt, "negative_prompt": None}
    assert prompt_options(kind, r"(a:1.0) \(dog\)", "") == {"prompt": "a (dog)", "negative_prompt": ""}
    assert prompt_options(kind, f"(a) {LONG}", syntax="plain") == {"prompt": f"(a) {LONG}", "negative_prompt": None}


def test_the_embeddings_of_a_long_prompt_are_those_of_its_chunks(kind):
    options = prompt_options(kind, LONG)
    chunks = [encoded(kind, chunk) for chunk in CHUNKS]
    expected = torch.cat([chunk[0] for chunk in chunks], 1)
    assert options["prompt"] is None
    torch.testing.assert_close(options["prompt_embeds"], expected)
    torch.testing.assert_close(options["negative_prompt_embeds"], torch.cat([chunk[1] for chunk in chunks], 1))
    if "text_encoder_2" in kind.components:
        torch.testing.assert_close(options["pooled_prompt_embeds"], chunks[0][2])
        torch.testing.assert_close(options["negative_pooled_prompt_embeds"], chunks[0][3])
        assert not options["negative_prompt_embeds"].any()  # SDXL's missing negative prompt


def test_the_shorter_prompt_is_filled_up_with_empty_chunks(kind):
    options = prompt_options(kind, LONG, "a cat")
    expected = torch.cat([encoded(kind, text)[0] for text in ("a cat", "")], 1)
    torch.testing.assert_close(options["negative_prompt_embeds"], expected)
    options = prompt_options(kind, "a cat", LONG)
    torch.testing.assert_close(options["prompt_embeds"], expected)


def test_a_weight_moves_the_embeddings_of_its_tokens_away_from_the_empty_prompt(kind):
    embeds = prompt_options(kind, "a (red:1.5) dog", "b")["prompt_embeds"]
    plain, empty = encoded(kind, "a red dog")[0], encoded(kind, "")[0]
    red = slice(2, 5)  # after the start and "a"
    torch.testing.assert_close(embeds[:, red], empty[:, red] + 1.5 * (plain - empty)[:, red])
    others = [index for index in range(embeds.shape[1]) if index not in range(2, 5)]
    torch.testing.assert_close(embeds[:, others], plain[:, others])
    negative = prompt_options(kind, "b", "a (red:1.5) dog")["negative_prompt_embeds"]
    torch.testing.assert_close(negative, embeds)


def test_the_end_of_a_long_prompt_and_a_weight_change_the_image(kind):
    def image(prompt, **options):
        return generate_image(kind, seed=0, **prompt_options(kind, prompt, **options), **SMALL)

    assert image(f"{LONG} and a tree") != image(LONG)
    assert image("a (red:1.5) dog") != image("a red dog") == image("a (red:1) dog")
    assert image("a red dog") == generate_image(kind, "a red dog", 0, **SMALL)
    assert image("a dog", negative_prompt=LONG) != image("a dog", negative_prompt=f"{LONG} and a tree")


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_sdxl"])
def test_clip_skip_applies_to_long_prompts(request, model):
    folder = str(request.getfixturevalue(model))
    plain, skipping = load_pipeline(folder), load_pipeline(folder, clip_skip=1)
    embeds = prompt_options(plain, LONG, clip_skip=1)["prompt_embeds"]
    torch.testing.assert_close(embeds, prompt_options(skipping, LONG)["prompt_embeds"])
    torch.testing.assert_close(embeds, torch.cat([encoded(plain, text, clip_skip=1)[0] for text in CHUNKS], 1))
    assert not torch.allclose(embeds, prompt_options(plain, LONG)["prompt_embeds"])


def test_vectors_of_a_learned_token_have_its_weight(pipe):
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    set_tokens(pipe, "tiger", {"text_encoder": {"<sks>": vectors}})
    embeds = prompt_options(pipe, "a (<sks>:2) dog")["prompt_embeds"]
    changed = (embeds - encoded(pipe, "a <sks> dog")[0]).abs().amax(-1)[0] > 1e-4
    assert changed.nonzero().flatten().tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    "prompt", ["a" * 9000, "\U0001f600" * 100, "قطة على الشاطئ " * 20], ids=["word", "emoji", "arabic"]
)
def test_unusual_long_prompts_are_divided(pipe, prompt):
    embeds = prompt_options(pipe, prompt)["prompt_embeds"]
    assert embeds.shape[1] > 40 and embeds.shape[1] % 40 == 0 and embeds.isfinite().all()


def test_an_unknown_syntax_is_refused(pipe):
    with pytest.raises(ConfigError, match="--prompt_syntax is 'compel': give a1111 or plain"):
        prompt_options(pipe, "a dog", syntax="compel")


def test_models_without_weights_read_brackets_as_text_and_say_so(tiny_sd, tmp_path, caplog):
    pipe = load_pipeline(str(models.save_stable_diffusion_3(tmp_path / "sd3", tiny_sd)))
    assert prompt_options(pipe, "a (red:1.2) dog") == {"prompt": "a (red:1.2) dog", "negative_prompt": None}
    assert "brackets are text" in caplog.text
