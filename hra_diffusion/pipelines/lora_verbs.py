"""diffusers' own methods for LoRAs in pipelines with HRA adapters: they act on LoRAs, or name the function to use.

The methods of diffusers' classes are wrapped when an adapter is first loaded. They do the same as before in pipelines
without HRA adapters.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Final

from diffusers import DiffusionPipeline

from hra_diffusion.errors import ConfigError
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.bound_calls import bind_calls
from hra_diffusion.pipelines.components import (
    adapted_components,
    base_options_of,
    lock_of,
    models,
    set_base_options,
    uncompiled,
)
from hra_diffusion.pipelines.protocol import Pipeline

_STRENGTH: Final = "`with using_hra_adapters(pipe, name, strength):`"
_INSTEAD: Final = {
    "set_adapters": "set_hra_adapters",
    "delete_adapters": "unload_hra_weights",
    "fuse_lora": "fuse_hra",
    "unfuse_lora": "unfuse_hra",
    "disable_lora": "`with disable_hra(pipe):`",
    "enable_lora": "set_hra_adapters",
    "set_lora_device": "pipe.to",
    "encode_prompt": _STRENGTH,
}
"""What to use for HRA adapters instead of a method for LoRAs."""

_VERBS: Final = (*_INSTEAD, "load_lora_weights", "unload_lora_weights", "get_list_adapters", "get_active_adapters")
_wrapped: set[Any] = set()


def guard_lora_verbs(kind: type) -> None:
    """Wrap a pipeline class's methods of LoRAs and of prompts, once."""
    bind_calls(kind)
    for base in kind.__mro__:
        for verb in _VERBS:
            if (method := vars(base).get(verb)) is not None and method not in _wrapped:
                _wrapped.add(guarded := _guarded(verb, method))
                setattr(base, verb, guarded)
    if (from_pipe := vars(DiffusionPipeline)["from_pipe"]) not in _wrapped:
        _wrapped.add(guarded := classmethod(_sharing(from_pipe.__func__)))
        setattr(DiffusionPipeline, "from_pipe", guarded)  # noqa: B010 (a method of a class of others)
    if (register := vars(DiffusionPipeline)["register_modules"]) not in _wrapped:
        _wrapped.add(guarded := _registering(register))
        setattr(DiffusionPipeline, "register_modules", guarded)  # noqa: B010


def _registering(register: Callable[..., None]) -> Callable[..., None]:
    """Return diffusers' `register_modules`, which guards the class of a pipeline made of adapted models, too."""

    @wraps(register)
    def register_guarded(self: Any, **modules: Any) -> None:
        register(self, **modules)
        if any(isinstance(uncompiled(module), HRAModel) for module in modules.values()):
            guard_lora_verbs(type(self))

    return register_guarded


def _sharing(from_pipe: Callable[..., Any]) -> Callable[..., Any]:
    """Return diffusers' `from_pipe`, for pipelines with adapters, too: it compares the classes of components."""

    @wraps(from_pipe)
    def share(cls: type, pipeline: Any, **kwargs: Any) -> Any:
        with _bare(pipeline) as adapted:
            shared = from_pipe(cls, pipeline, **kwargs)
        for name, component in adapted.items():
            if getattr(shared, name, None) is component.model:
                setattr(shared, name, component)
        if adapted:
            guard_lora_verbs(type(shared))
            set_base_options(shared, base_options_of(pipeline))
        return shared

    return share


def _guarded(verb: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method for LoRAs that leaves HRA adapters alone."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        adapted = adapted_components(self)
        if not adapted:
            return method(self, *args, **kwargs)
        if verb in _INSTEAD:
            _refuse_hra(verb, adapted, args, kwargs)
        if verb == "encode_prompt":
            return method(self, *args, **kwargs)
        with _bare(self), ExitStack() as stack:
            for component in adapted.values() if verb == "load_lora_weights" else ():
                stack.enter_context(component._reseated())
            result = method(self, *args, **kwargs)
        return _with_hra(verb, result, adapted)

    return call


def _refuse_hra(verb: str, adapted: dict[str, HRAModel], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a method for LoRAs that names HRA adapters, and any in a pipeline without LoRAs.

    Raises:
        ConfigError: it does.
    """
    if verb == "encode_prompt":
        if kwargs.get("lora_scale") is not None and not any(map(_has_lora, adapted.values())):
            raise ConfigError(f"lora_scale is the scale of LoRAs: for HRA, call the pipeline within {_STRENGTH}.")
        return
    first = args[:1] if verb in ("set_adapters", "delete_adapters", "set_lora_device") else ()
    given = kwargs.get("adapter_names", next(iter(first), None)) or ()
    names: Iterable[str] = (given,) if isinstance(given, str) else given
    hra_names = {name for component in adapted.values() for name in component.peft_config}
    loras = {name for component in adapted.values() for name in vars(component.model).get("peft_config", {})}
    if named := [name for name in names if name in hra_names - loras]:
        raise ConfigError(f"{verb} is for LoRAs, and {named[0]!r} is an HRA adapter: use {_INSTEAD[verb]}.")
    if not any(map(_has_lora, adapted.values())):
        raise ConfigError(f"{verb} is for LoRAs, and the pipeline has HRA adapters only: use {_INSTEAD[verb]}.")


def _has_lora(component: HRAModel) -> bool:
    return any(len(getattr(module, "lora_A", ())) > 0 for module in component.model.modules())


def _with_hra(verb: str, result: Any, adapted: dict[str, HRAModel]) -> Any:
    """Add HRA adapters to the lists of adapters."""
    if verb == "get_list_adapters":
        lists = {name: list(component.peft_config) for name, component in adapted.items()}
        return {name: list(dict.fromkeys([*result.get(name, ()), *lists.get(name, ())])) for name in result | lists}
    if verb == "get_active_adapters":
        active = [name for component in adapted.values() for name in component.active_adapters]
        return list(dict.fromkeys([*result, *active]))
    return result


@contextmanager
def _bare(pipe: Pipeline) -> Iterator[dict[str, HRAModel]]:
    """Put the models themselves into a pipeline within a `with` block, instead of the objects with their adapters."""
    with lock_of(pipe):
        adapted = adapted_components(pipe)
        held = {name: model for name, model in models(pipe).items() if name in adapted}
        for name, model in held.items():
            if uncompiled(model) is model:
                setattr(pipe, name, adapted[name].model)
        try:
            yield adapted
        finally:
            for name, model in held.items():
                setattr(pipe, name, model)
