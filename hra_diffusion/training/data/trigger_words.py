"""Trigger words of subjects: their captions, class prompts and tokens, checked with the model's tokenizers."""

import logging
from collections.abc import Sequence
from typing import Any

from hra_diffusion.formats.trigger_words import TRIGGER_WORDS, prompt_words
from hra_diffusion.text import shorten
from hra_diffusion.training.data.subjects import Example, Subject

logger = logging.getLogger(__name__)

RARE_TOKEN = 44_000
"""First rare token of CLIP's vocabulary of 49408, which is sorted by frequency: dachshund is number 42720."""


def report_trigger_words(subjects: Sequence[Subject], examples: Sequence[Example], tokenizers: Sequence[Any]) -> None:
    """Warn of prompts and captions that bind a subject to no word of its own.

    Args:
        subjects: subjects with their prompts.
        examples: their images with captions.
        tokenizers: the tokenizers of the model's text encoders.
    """
    for subject in subjects:
        words = prompt_words(subject.prompt)
        class_words = prompt_words(subject.class_prompt or "")
        known = [word for word in words if word in TRIGGER_WORDS or word.startswith("<")]
        candidates = known or [word for word in words if word not in class_words]
        rare = known or [word for word in candidates if not _is_ordinary(word, tokenizers)]
        shared = [word for word in known if word in class_words] or ([] if candidates else words)
        if words == class_words:
            logger.warning(
                'The class prompt of %s is the instance prompt, "%s": the class has to have no trigger word.',
                subject.folder,
                subject.prompt,
            )
        elif shared:
            logger.warning(
                'The class prompt "%s" of %s contains the trigger word "%s" of the instance prompt: remove it.',
                subject.class_prompt,
                subject.folder,
                " ".join(shared),
            )
        elif not rare:
            logger.warning(
                'The model has a meaning for the words that name the subject of %s: "%s". They change slowly, and for '
                'other images, too: use a rare trigger word in --instance_prompt, such as "%s".',
                subject.folder,
                " ".join(candidates),
                TRIGGER_WORDS[0],
            )
        _report_captions(subject, examples, rare or candidates)


def _report_captions(subject: Subject, examples: Sequence[Example], triggers: Sequence[str]) -> None:
    """Warn of a subject's captions without any of its trigger words."""
    subject_examples = [example for example in examples if example.photo.path.parent == subject.folder]
    lacking = [
        example.photo.path.name
        for example in subject_examples
        if not set(triggers) & set(prompt_words(example.caption))
    ]
    if triggers and lacking:
        logger.warning(
            '%d of %d captions of %s lack the trigger word "%s", which does not learn from their images: %s. '
            "Write it into their captions, or remove these.",
            len(lacking),
            len(subject_examples),
            subject.folder,
            " ".join(triggers),
            shorten(lacking),
        )


def _is_ordinary(word: str, tokenizers: Sequence[Any]) -> bool:
    """Whether a tokenizer reads a word as one frequent token, or as a chain of words such as "my" and "dog"."""
    return any(_is_frequent(word, tokenizer) for tokenizer in tokenizers)


def _is_frequent(word: str, tokenizer: Any) -> bool:
    pieces = [piece.removesuffix("</w>") for piece in tokenizer.tokenize(word)]
    numbers = [tokenizer.get_vocab().get(f"{piece}</w>", RARE_TOKEN) for piece in pieces]
    letters = len(pieces) > 1 and any(len(piece) < 2 for piece in pieces)
    return bool(pieces) and not letters and all(number < RARE_TOKEN for number in numbers)
