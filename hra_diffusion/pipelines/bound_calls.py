"""The methods of pipelines that know the prompts, `__call__` and `encode_prompt`: they activate bound adapters.

The methods of a pipeline's class are wrapped when the class first gets an adapter. They do the same as before without
bound adapters.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from hra_diffusion.pipelines.binding import binding_of, prompts_of, remember_prompts
from hra_diffusion.pipelines.bound_activation import bound_to
from hra_diffusion.pipelines.kinds import default_size

_METHODS = ("__call__", "encode_prompt")
_PROMPTS = ("prompt", "prompt_2", "prompt_3", "prompt_4")
_wrapped: set[Any] = set()


def bind_calls(kind: type) -> None:
    """Wrap the methods of a pipeline's class that know the prompts, once."""
    for base in kind.__mro__:
        for name in _METHODS:
            if (method := vars(base).get(name)) is None or base is object:
                continue
            # lora_verbs wraps encode_prompt, too
            if inspect.unwrap(method, stop=_wrapped.__contains__) not in _wrapped:
                _wrapped.add(bound := _bound(method))
                setattr(base, name, bound)


def _bound(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a pipeline's method that activates the bound adapters of its prompts."""
    signature = inspect.signature(method)

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if binding_of(self) is None:
            return method(self, *args, **kwargs)
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            return method(self, *args, **kwargs)  # raises the error
        prompts = _prompts(given)
        count = given.get("num_images_per_prompt") or given.get("num_videos_per_prompt") or 1
        images = 1 if method.__name__ == "encode_prompt" else count
        size = _size(self, given) if "height" in signature.parameters else None
        options = {name: given[name] for name in ("negative_prompt", "clip_skip") if given.get(name) is not None}
        with bound_to(self, prompts, images, size, options):
            result = method(self, *args, **kwargs)
        if method.__name__ == "encode_prompt":
            remember_prompts(result[0] if isinstance(result, tuple) else result, prompts)
        return result

    return call


def _size(pipe: Any, given: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and the width of a call's images in pixels, if they are known."""
    default = default_size(pipe)
    height, width = given.get("height") or default, given.get("width") or default
    return (height, width) if height and width else None


def _prompts(given: Mapping[str, Any]) -> list[str]:
    """Return the prompts of a call, each with those for further text encoders; none without a prompt."""
    texts = [given[name] for name in _PROMPTS if given.get(name) is not None]
    if texts:
        lists = [[text] if isinstance(text, str) else list(text) for text in texts]
        return [" ".join(parts) for parts in zip(*lists, strict=False)]
    return [] if given.get("prompt_embeds") is None else prompts_of(given["prompt_embeds"])
