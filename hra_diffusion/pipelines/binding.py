"""Adapters bound to prompts, to their tokens, or to regions of the image: what is bound to which words.

bind="prompt": each adapter is active only for the prompts that hold its trigger word. For "tokens" and "region", see
`regions`. `bound_activation` activates the adapters of a call's prompts.

Pipelines that share a denoiser share its binding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hra_diffusion.adapter.mixture import Combine
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.trigger_words import Phrase, Trigger, prompt_words
from hra_diffusion.pipelines.components import shared_model
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.region_prompts import check_prompts
from hra_diffusion.pipelines.regions import RegionMask, read_mask
from hra_diffusion.pipelines.strengths import ComponentStrengths
from hra_diffusion.pipelines.trigger_phrases import bound_phrases, phrases_after_swap
from hra_diffusion.text import shorten

Bind = Literal["prompt", "tokens", "region"]
Triggers = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Binding:
    """The bound adapters.

    Attributes:
        bind: what they are bound to.
        strengths: their strengths by component, in the order of their product.
        combine: their combination in a prompt that names several, see `set_hra_adapters`.
        phrases: the trigger words of each; one of them in a prompt suffices.
        given: the adapters whose trigger words are not those of their files.
        masks: the regions of the adapters, of shape (height, width), from 0 to 1; none with bind="region" for those
            of cross-attention.
        prompts: the prompts of the regions, see `region_prompts`; none for regions that read the call's prompt.
    """

    bind: Bind
    strengths: Mapping[str, ComponentStrengths]
    combine: Combine
    phrases: Mapping[str, tuple[Phrase, ...]]
    given: frozenset[str] = frozenset()
    masks: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass
class BindingState:
    """What the pipelines of one denoiser know.

    Attributes:
        binding: the bound adapters.
        triggers: the trigger words of the loaded adapters, by the files of each; None where they have none.
        in_call: whether the adapters of a call's prompts are active.
    """

    binding: Binding | None = None
    triggers: dict[str, Trigger | None] = field(default_factory=dict[str, Trigger | None])
    in_call: bool = False


_states: WeakKeyDictionary[nn.Module, BindingState] = WeakKeyDictionary()
_encoded: Any = WeakIdKeyDictionary()
"""The prompts of embeddings, one for each row."""


def binding_of(pipe: Pipeline) -> Binding | None:
    """Return the bound adapters of a pipeline, if any."""
    return state_of(pipe).binding


def set_binding(pipe: Pipeline, binding: Binding | None) -> None:
    """Bind adapters, or none."""
    state_of(pipe).binding = binding


def set_trigger(pipe: Pipeline, adapter_name: str, trigger: Trigger | None) -> None:
    """Keep the trigger word of a loaded adapter, and bind a bound one to it unless its word was given.

    Raises:
        ConfigError: the adapter is bound, and the word is that of another one.
    """
    state = state_of(pipe)
    triggers, binding = state.triggers | {adapter_name: trigger}, state.binding
    if binding is not None and trigger is not None and adapter_name in binding.phrases.keys() - binding.given:
        kept = binding.given | {name for name in binding.phrases if triggers.get(name) is None}
        phrases = phrases_after_swap(binding.phrases, adapter_name, triggers, kept, with_noun=binding.bind != "prompt")
        state.binding = replace(binding, phrases=phrases)
    state.triggers = triggers


def trigger_restorer(pipe: Pipeline) -> Callable[[], None]:
    """Return a function that restores the present trigger words and binding."""
    state = state_of(pipe)
    return partial(vars(state).update, binding=state.binding, triggers=state.triggers)


def forget_adapters(pipe: Pipeline, adapter_names: Sequence[str]) -> None:
    """Forget the trigger words and the binding of removed adapters."""
    state = state_of(pipe)
    state.triggers = {name: trigger for name, trigger in state.triggers.items() if name not in adapter_names}
    if state.binding is not None:
        left = {name: value for name, value in state.binding.strengths.items() if name not in adapter_names}
        phrases = {name: state.binding.phrases[name] for name in left}
        masks = {name: mask for name, mask in state.binding.masks.items() if name in left}
        prompts = {name: prompt for name, prompt in state.binding.prompts.items() if name in left}
        changes = {"strengths": left, "phrases": phrases, "masks": masks, "prompts": prompts}
        state.binding = replace(state.binding, **changes) if left else None


def make_binding(
    pipe: Pipeline,
    bind: Bind,
    strengths: Mapping[str, ComponentStrengths],
    combine: Combine,
    triggers: Triggers | None = None,
    masks: Mapping[str, RegionMask] | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Binding:
    """Return a binding of adapters to their trigger words.

    Args:
        pipe: a pipeline with the adapters.
        bind: see `Binding`.
        strengths: the adapters with their strengths.
        combine: see `Binding`.
        triggers: the trigger words of some adapters, one or several each; by default those of their files.
        masks: the regions of the adapters, for "region" alone; by default their attention makes them.
        prompts: the prompts of the regions; by default they read that of the call.

    Raises:
        ConfigError: an adapter has no trigger word or that of another one, or no mask or one of no use, or a prompt
            without its trigger word.
    """
    masks, prompts = masks or {}, prompts or {}
    if wrong := set(masks) ^ (set(strengths) if bind == "region" and masks else set()):
        raise ConfigError(
            "masks are for bind='region', one for each adapter or none at all: "
            f"{'add' if bind == 'region' else 'leave out'} that of {shorten(sorted(wrong))}."
        )
    texts = {name: (words,) if isinstance(words, str) else tuple(words) for name, words in (triggers or {}).items()}
    given = {name: tuple(tuple(prompt_words(text)) for text in words) for name, words in texts.items()}
    phrases = bound_phrases(list(strengths), state_of(pipe).triggers, given, with_noun=bind != "prompt")
    check_prompts(prompts, masks, phrases)
    return Binding(
        bind=bind,
        strengths=dict(strengths),
        combine=combine,
        phrases=phrases,
        given=frozenset(given),
        masks={name: read_mask(name, mask) for name, mask in masks.items()},
        prompts=dict(prompts),
    )


def remember_prompts(embeddings: Any, prompts: Sequence[str]) -> None:
    """Keep the prompts of embeddings (rows, …), whose rows are divided among them evenly."""
    if isinstance(embeddings, Tensor) and prompts and len(embeddings) % len(prompts) == 0:
        _encoded[embeddings] = [prompt for prompt in prompts for _ in range(len(embeddings) // len(prompts))]


def prompts_of(embeddings: Any) -> list[str]:
    """Return the prompts of embeddings, one for each row.

    Raises:
        ConfigError: they are unknown.
    """
    if isinstance(embeddings, Tensor) and embeddings in _encoded:
        return _encoded[embeddings]
    raise ConfigError(
        "The adapters are bound to prompts (bind='prompt'), and that of prompt_embeds is unknown: give prompt, or "
        "the embeddings themselves that prompt_options or the pipeline's encode_prompt has returned."
    )


def state_of(pipe: Pipeline) -> BindingState:
    """Return what the pipelines of a pipeline's denoiser know."""
    return _states.setdefault(shared_model(pipe), BindingState())
