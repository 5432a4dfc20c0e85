"""Adapters bound to prompts, to their tokens, or to regions of the image.

bind="prompt": each adapter is active only for the prompts that hold its trigger word. For "tokens" and "region", see
`regions`.

Prompts are known to two methods of a pipeline, `__call__` and `encode_prompt`. While one of them runs, the adapters are
those of its prompts:

- All prompts of the call name the same adapters: these are active, as by `set_hra_adapters`. The image is that of the
  adapter alone, to the bit, at the cost of the adapters in use; compiled models, hot swap, strengths and controls work
  as without binding. Without a named adapter it is the base model's image.
- The prompts name different adapters: they form a mixed batch (`adapter.rows`). Each component gets a mixture for every
  example. The text encoders' examples are the prompts, the denoiser's the images, num_images_per_prompt to a prompt.
  Classifier-free guidance repeats the series of images: first the unconditional half, then the conditional one, in one
  call or in two. So row i of a layer belongs to image i mod n, whether guidance is used or not, and rows of prompts
  without an adapter are the base model's to the bit.

An adapter is active in both halves of guidance, as it is without binding; an unconditional half of the base model would
be another image than that of the adapter alone. Embeddings stand for the prompts they were made of, if `encode_prompt`
or `prompt_options` has made them.

Pipelines that share a denoiser share its binding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hra_diffusion.adapter.mixture import ActiveAdapters, Combine, ModelMixture
from hra_diffusion.adapter.strengths import Strength
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.trigger_words import Phrase, Trigger, named_in, prompt_words
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.components import (
    adapted_components,
    denoiser_name,
    lock_of,
    offloading_suspended,
    shared_model,
)
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.region_prompts import check_prompts, encode_prompts
from hra_diffusion.pipelines.regions import RegionMask, activate_masks, check_size, check_unet, read_mask
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
class _State:
    """What the pipelines of one denoiser know.

    Attributes:
        binding: the bound adapters.
        triggers: the trigger words of the loaded adapters, by the files of each; None where they have none.
        in_call: whether the adapters of a call's prompts are active.
    """

    binding: Binding | None = None
    triggers: dict[str, Trigger | None] = field(default_factory=dict[str, Trigger | None])
    in_call: bool = False


_states: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()
_encoded: Any = WeakIdKeyDictionary()
"""The prompts of embeddings, one for each row."""


def binding_of(pipe: Pipeline) -> Binding | None:
    """Return the bound adapters of a pipeline, if any."""
    return _state(pipe).binding


def set_binding(pipe: Pipeline, binding: Binding | None) -> None:
    """Bind adapters, or none."""
    _state(pipe).binding = binding


def set_trigger(pipe: Pipeline, adapter_name: str, trigger: Trigger | None) -> None:
    """Keep the trigger word of a loaded adapter, and bind a bound one to it unless its word was given.

    Raises:
        ConfigError: the adapter is bound, and the word is that of another one.
    """
    state = _state(pipe)
    triggers, binding = state.triggers | {adapter_name: trigger}, state.binding
    if binding is not None and trigger is not None and adapter_name in binding.phrases.keys() - binding.given:
        kept = binding.given | {name for name in binding.phrases if triggers.get(name) is None}
        phrases = phrases_after_swap(binding.phrases, adapter_name, triggers, kept, with_noun=binding.bind != "prompt")
        state.binding = replace(binding, phrases=phrases)
    state.triggers = triggers


def trigger_restorer(pipe: Pipeline) -> Callable[[], None]:
    """Return a function that restores the present trigger words and binding."""
    state = _state(pipe)
    return partial(vars(state).update, binding=state.binding, triggers=state.triggers)


def forget_adapters(pipe: Pipeline, adapter_names: Sequence[str]) -> None:
    """Forget the trigger words and the binding of removed adapters."""
    state = _state(pipe)
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
    phrases = bound_phrases(list(strengths), _state(pipe).triggers, given, with_noun=bind != "prompt")
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


@contextmanager
def bound_to(
    pipe: Pipeline,
    prompts: Sequence[str],
    images: int = 1,
    size: tuple[int, int] | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[None]:
    """Activate the bound adapters of some prompts within a ``with`` block; nothing without bound adapters.

    Args:
        pipe: the pipeline.
        prompts: the prompts of a batch.
        images: number of images for each prompt.
        size: height and width of the images in pixels, if known.
        options: the call's negative_prompt and clip_skip, where it has them.

    Raises:
        ConfigError: the mean of a prompt's adapters is impossible, or a mixed batch is: see `adapter.rows`.
    """
    with lock_of(pipe), ExitStack() as undo:
        state, components = _state(pipe), adapted_components(pipe)
        binding = state.binding
        if (
            binding is None
            or state.in_call
            or not any(model._activation.active.enabled for model in components.values())
        ):
            yield
            return
        if binding.bind != "prompt":
            _mask(undo, pipe, binding, prompts, images, size, options)
            yield
            return
        named = [named_in(prompt, binding.phrases) for prompt in prompts]
        state.in_call = True
        undo.callback(setattr, state, "in_call", False)
        if len(set(named)) > 1:
            if others := [other for model in components.values() for other in model.active_adapters]:
                raise ConfigError(
                    f"The prompts of the batch name different adapters, and {others[0]!r} is active for all of them: "
                    "generate the prompts one by one."
                )
            for name, model in components.items():
                repeats = images if name == denoiser_name(pipe) else 1
                mixtures = [_mixture(name, model, binding, names) for names in named for _ in range(repeats)]
                undo.enter_context(model._activation.mixed(mixtures, repeated=True))
        elif named and named[0]:
            with offloading_suspended(pipe):
                for name, model in components.items():
                    undo.callback(model._restorer())
                    _activate(name, model, binding, named[0])
        yield


def _mask(
    undo: ExitStack,
    pipe: Pipeline,
    binding: Binding,
    prompts: Sequence[str],
    images: int,
    size: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> None:
    """Activate adapters inside of their masks; nothing without a prompt."""
    if len(set(prompts)) > 1:
        raise ConfigError("Adapters bound to tokens or regions need one prompt for all images: give one at a time.")
    if others := [name for model in adapted_components(pipe).values() for name in model.active_adapters]:
        raise ConfigError(
            f"{others[0]!r} is active everywhere, and adapters bound to tokens or regions are not used beside such "
            "ones: deactivate it, or bind it, too."
        )
    if size is not None:
        check_size(binding.masks, *size)
    state = _state(pipe)
    if prompts:
        check_unet(pipe)
        state.in_call = True
        undo.callback(setattr, state, "in_call", False)
        encoded = encode_prompts(pipe, binding.prompts, binding.strengths, options)
        masks = None if binding.bind == "region" and not binding.masks else binding.masks
        count = len(prompts) * images
        undo.push(activate_masks(pipe, prompts[0], binding.strengths, binding.phrases, masks, count, encoded))


def _activate(component: str, model: HRAModel, binding: Binding, names: Sequence[str]) -> None:
    """Activate bound adapters beside the active ones of a component."""
    strengths = {**model.strengths, **_strengths_in(component, binding)}
    present = list(dict.fromkeys([*model.active_adapters, *(name for name in names if name in model.peft_config)]))
    model.set_adapters(present, [strengths[name] for name in present], binding.combine)


def _strengths_in(component: str, binding: Binding) -> dict[str, Strength]:
    """Return the strengths of the bound adapters that a component has."""
    return {
        name: by_component[component] for name, by_component in binding.strengths.items() if component in by_component
    }


def _mixture(component: str, model: HRAModel, binding: Binding, names: Sequence[str]) -> ModelMixture:
    """Return the mixture of bound adapters in a component."""
    present = tuple(name for name in names if name in model.peft_config)
    if not present:
        return ()
    strengths = _strengths_in(component, binding)
    return ActiveAdapters(names=present, strengths=strengths, combine=binding.combine).mixture


def _state(pipe: Pipeline) -> _State:
    return _states.setdefault(shared_model(pipe), _State())
