"""Prompts of a subject: made of a prefix, a trigger word and a class, and divided into them again."""

from collections.abc import Sequence


def subject_prompt(prompt_prefix: str, *words: str) -> str:
    """Return the prompt of a subject: "a photo of", "sks", "dog" make "a photo of a sks dog"."""
    return " ".join([prompt_prefix.strip(), "a", *(word.strip() for word in words)]).strip()


def split_prompts(instance_prompt: str, class_prompt: str) -> tuple[str, str, str] | None:
    """Return prompt prefix, trigger word and class of a subject's prompts, or None for prompts of another form.

    "a photo of a sks dog" and "a photo of a dog" give "a photo of", "sks" and "dog".
    """
    instance, class_ = instance_prompt.split(), class_prompt.split()
    start = _common(instance, class_)
    end = _common(instance[start:][::-1], class_[start:][::-1])
    token, subject = instance[start : len(instance) - end], class_[start:]
    if not token or not subject or len(subject) != end or class_[start - 1 : start] != ["a"]:
        return None
    return " ".join(class_[: start - 1]), " ".join(token), " ".join(subject)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of equal words at the start."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
