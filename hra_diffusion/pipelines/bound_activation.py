"""The activation of bound adapters during a call of a pipeline.

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
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

from hra_diffusion.adapter.mixture import ActiveAdapters, ModelMixture
from hra_diffusion.adapter.strengths import Strength
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.trigger_words import named_in
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.binding import Binding, state_of
from hra_diffusion.pipelines.components import adapted_components, denoiser_name, lock_of, offloading_suspended
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.region_prompts import encode_prompts
from hra_diffusion.pipelines.regions import activate_masks, check_size, check_unet


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
        state, components = state_of(pipe), adapted_components(pipe)
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
    state = state_of(pipe)
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
