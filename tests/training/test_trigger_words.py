"""Trigger words: captions without them, class prompts with them, and words that the model knows."""

import itertools
import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from hra_diffusion.formats.trigger_words import TRIGGER_WORDS
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.dataset import Photo
from hra_diffusion.training.data.subjects import Example, Subject
from hra_diffusion.training.data.trigger_words import report_trigger_words
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run

# Words of CLIP's vocabulary with their numbers there, and the pieces of its words that are no token.
CLIP = {"a": 320, "photo": 1125, "of": 539, "dog": 1929, "red": 736, "tiger": 6531, "my": 607, "teapot": 40749}
CLIP |= {"sks": 48136, "ohwx": 47993, "phol": 48140, "hta": 49384, "olis": 49397, "wx": 3561}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of CLIP's kind with some of CLIP's words at their places in its vocabulary."""
    letters = {letter + end: number for number, (end, letter) in enumerate(itertools.product(("", "</w>"), LETTERS))}
    merges, words = [], {}
    for word, number in CLIP.items():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[-2]} {parts[-1]}")
            parts[-2:] = [parts[-2] + parts[-1]]
            words.setdefault(parts[-1], 10_000 + len(words))
        words[word + "</w>"] = number
    merges.append("m y")
    vocabulary = letters | words | {"my": 1152, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def report(tokenizer, caplog):
    """Return a function that returns the warnings about a prompt, its class and captions."""

    def warnings(prompt, class_prompt=None, *captions):
        caplog.clear()
        subject = Subject(folder=Path("dog"), prompt=prompt, class_prompt=class_prompt)
        photos = (
            Photo(path=Path("dog", f"{at}.png"), size=(8, 8), has_alpha=False, digest="", perceptual_hash=None)
            for at in itertools.count()
        )
        examples = [Example(photo=photo, caption=text) for text, photo in zip(captions or (prompt,), photos)]  # noqa: B905
        report_trigger_words([subject], examples, [tokenizer])
        return caplog.text

    return warnings


def test_captions_without_the_trigger_word_are_named(report):
    captions = ["a sks dog on grass", "a dog asleep", "A SKS's ball", "sksy"]
    warning = report("a photo of a sks dog", "a photo of a dog", *captions)
    assert '2 of 4 captions of dog lack the trigger word "sks"' in warning
    assert "from their images: 1.png, 3.png." in warning
    assert not report("a photo of a olis dog", "a dog", "a olis dog asleep")
    assert 'lack the trigger word "<cat-toy>"' in report("a <cat-toy> dog", None, "a cat toy")


def test_a_class_prompt_equal_to_the_instance_prompt_is_reported(report):
    assert 'is the instance prompt, "a photo of a sks dog"' in report("a photo of a sks dog", "a photo of a sks dog")


def test_a_class_prompt_with_the_trigger_word_is_reported(report):
    assert 'contains the trigger word "sks"' in report("a photo of a sks dog", "a sks dog")
    assert 'contains the trigger word "a zwx dog"' in report("a zwx dog", "a photo of a zwx dog")


@pytest.mark.parametrize("word", ["red", "tiger", "teapot", "mydog"])
def test_a_trigger_word_that_the_model_knows_is_reported(report, word):
    assert f'The model has a meaning for the words that name the subject of dog: "{word}"' in report(
        f"a photo of a {word} dog", "a photo of a dog"
    )


@pytest.mark.parametrize("word", [*TRIGGER_WORDS, "olis", "zwx", "p3rs0n", "<dog>"])
def test_a_rare_trigger_word_is_not_reported(report, word):
    assert not report(f"a photo of a {word} dog", "a photo of a dog")
    assert not report(f"a photo of a {word} dog")


def test_a_prompt_of_ordinary_words_alone_is_reported(report):
    assert 'the subject of dog: "a photo of a dog"' in report("a photo of a dog")


def test_a_run_reports_captions_without_the_trigger_word(config, images, caplog):
    (images / "0.txt").write_text("a dog on grass")
    prepare_run(DreamBooth(with_values(config, {"instance_prompt": "a sks dog", "class_prompt": "a dog"})))
    assert f'1 of 4 captions of {images} lack the trigger word "sks"' in caplog.text
    assert caplog.text.count("lack the trigger word") == 1
