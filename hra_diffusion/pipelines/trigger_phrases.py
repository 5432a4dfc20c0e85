"""The trigger words of several adapters: each has to be the adapter's own."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import permutations, product

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.trigger_words import Phrase, Trigger, holds_phrase


def distinct_phrases(
    names: Iterable[str], known: Mapping[str, Trigger | None], given: Mapping[str, tuple[Phrase, ...]]
) -> dict[str, tuple[Phrase, ...]]:
    """Return the trigger words of adapters; adapters with the same word are told apart by the next word.

    Args:
        names: the adapters.
        known: their trigger words by their files.
        given: other trigger words of some of them.

    Raises:
        ConfigError: one has no trigger word, or that of another one.
    """
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(f"triggers names {unknown[0]!r}, which is not among the bound adapters: {', '.join(names)}.")
    phrases: dict[str, tuple[Phrase, ...]] = {}
    for name in names:
        trigger = known.get(name)
        phrases[name] = given.get(name, () if trigger is None else (trigger.word,))
        if not phrases[name] or not all(phrases[name]):
            raise ConfigError(
                f"The adapter {name!r} has no trigger word in its files: name it with triggers={{{name!r}: 'sks'}}."
            )
    users = Counter(phrase for choices in phrases.values() for phrase in set(choices))
    phrases |= {
        name: (trigger.phrase,)
        for name in names
        if users[phrases[name][0]] > 1 and name not in given and (trigger := known.get(name))
    }
    _check_distinct(phrases)
    return phrases


def bound_phrases(
    names: Sequence[str],
    known: Mapping[str, Trigger | None],
    given: Mapping[str, tuple[Phrase, ...]],
    *,
    with_noun: bool,
) -> dict[str, tuple[Phrase, ...]]:
    """Return the trigger words of adapters, with the noun after those by their files: see `distinct_phrases`."""
    phrases = distinct_phrases(names, known, given)
    if with_noun:
        phrases |= {name: (trigger.phrase,) for name in phrases.keys() - given.keys() if (trigger := known.get(name))}
    return phrases


def phrases_after_swap(
    phrases: Mapping[str, tuple[Phrase, ...]],
    name: str,
    known: Mapping[str, Trigger | None],
    kept: Collection[str],
    *,
    with_noun: bool,
) -> dict[str, tuple[Phrase, ...]]:
    """Return the trigger words of adapters with a new word of one by its file; the others keep theirs if they can.

    Args:
        phrases: the words before.
        name: the adapter with a new word.
        known: the trigger words by the files, with the new one.
        kept: adapters that keep their words in any case.
        with_noun: as for `bound_phrases`.

    Raises:
        ConfigError: the word is that of another adapter.
    """
    others = {other: choices for other, choices in phrases.items() if other != name}
    trigger = known[name]
    assert trigger
    for phrase in (trigger.phrase,) if with_noun else (trigger.word, trigger.phrase):
        with suppress(ConfigError):
            return distinct_phrases(list(phrases), known, others | {name: (phrase,)})
    given = {other: choices for other, choices in others.items() if other in kept}
    return bound_phrases(list(phrases), known, given, with_noun=with_noun)


def _check_distinct(phrases: Mapping[str, tuple[Phrase, ...]]) -> None:
    """Raise ConfigError if the trigger word of one adapter is within another's."""
    for (name, choices), (other, others) in permutations(phrases.items(), 2):
        for part, whole in product(choices, others):
            if holds_phrase(whole, part):
                raise ConfigError(
                    f"The trigger word of the adapter {name!r}, {' '.join(part)!r}, is also in that of {other!r}, "
                    f"{' '.join(whole)!r}: name another one with triggers={{{name!r}: …}}, or bind one of them."
                )
