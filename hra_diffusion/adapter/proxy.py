"""Stand-in for a whole model."""

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn


class _Forward:
    """The method `forward` of a proxy, with the signature of its model's: trainers read the columns to keep from it."""

    def __get__(self, proxy: "ModelProxy | None", kind: type) -> Any:
        if proxy is None or torch.compiler.is_compiling():
            return kind.call_forward if proxy is None else proxy.call_forward
        return MethodType(_forward_like(type(proxy.model)), proxy)


@cache
def _forward_like(kind: type[nn.Module]) -> Callable[..., Any]:
    """Return a function that calls the model, with the signature of a class's forward."""

    def forward(self: "ModelProxy", *args: Any, **kwargs: Any) -> Any:
        return self.call_forward(*args, **kwargs)

    with suppress(TypeError, ValueError):  # a built-in function has no signature
        forward.__signature__ = inspect.signature(kind.forward)  # pyright: ignore[reportFunctionMemberAccess]
    return forward


class ModelProxy(nn.Module):
    """A wrapper with the attributes and the class of the wrapped model.

    Attributes that are not its own are those of the model, to read, to set and to delete. `isinstance` accepts the
    model's class, too: libraries that sort the components of a pipeline by class find the model. Where PEFT is
    imported, it accepts PEFT's `PeftModel` as well, unless the model is one of diffusers: transformers' Trainer asks
    for it before it resumes and keeps the best model. Every way of saving the model saves the result of `_ejected`.
    """

    forward: Any = _Forward()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # diffusers reads the module of a component's class from the instance, and writes it into a pipeline's index.
        self.__dict__["__module__"] = type(model).__module__
        if callable(getattr(model, "save_pretrained", None)):
            model.__dict__["save_pretrained"] = self._save_base

    def call_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model itself. A method, because a compiled `forward` is looked up by its name."""
        return self.call_model(self.model, *args, **kwargs)

    def call_model(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the model, or a method of it."""
        return function(*args, **kwargs)

    def _ejected(self) -> AbstractContextManager[nn.Module]:
        """Yield the model for saving within a `with` block."""
        raise NotImplementedError

    def _save_base(self, *args: Any, **kwargs: Any) -> Any:
        """Save the bare model by its own save_pretrained, without unknown arguments and None."""
        guard = self.model.__dict__.get("save_pretrained")
        if guard is not None and guard.__self__ is not self:  # another object has adapted the model since
            return guard(*args, **kwargs)
        with self._ejected() as base:
            save: Any = getattr(type(base), "save_pretrained")  # noqa: B009 (not the guard on the instance)
            known = inspect.signature(save).parameters
            open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
            kept = {k: v for k, v in kwargs.items() if v is not None and (open_ended or k in known)}
            return save(base, *args, **kept)

    def _leave(self) -> None:
        """Restore the model's own save_pretrained."""
        self.model.__dict__.pop("save_pretrained", None)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the model by its own method."""
        self.model.to(*args, **kwargs)
        return self

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The class of the model."""
        model = self.__dict__.get("_modules", {}).get("model")
        return type(self) if model is None else _accepted_class(type(model))

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute: one of the proxy, or else a present one of the model, or else a new one of the proxy."""
        if self._belongs_to_wrapper(name) or not hasattr(self.model, name):
            super().__setattr__(name, value)
        else:
            setattr(self.model, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute, of the model unless it is this object's own."""
        if self._belongs_to_wrapper(name):
            super().__delattr__(name)
        else:
            delattr(self.model, name)

    def _belongs_to_wrapper(self, name: str) -> bool:
        modules = self.__dict__.get("_modules", {})
        return "model" not in modules or name in modules or name in self.__dict__ or hasattr(type(self), name)

    def __dir__(self) -> list[str]:
        """List the attributes of this object and of its model."""
        return sorted({*dir(type(self)), *self.__dict__, *self._modules, *dir(self.model)})

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle this object by its real class."""
        return object.__new__, (type(self),), self.__dict__

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle this object by its real class, for any protocol."""
        return self.__reduce__()


def _accepted_class(kind: type[nn.Module]) -> type:
    """Return the class that a proxy of a model of some class claims to have."""
    peft = sys.modules.get("peft")
    if peft is None or not hasattr(peft, "PeftModel") or kind.__module__.partition(".")[0] == "diffusers":
        return kind
    return _peft_class(kind, peft.PeftModel)


class _OfTwoKinds(type):
    """A class with the ancestors of its base, and further ones behind them, whatever orders they inherit in."""

    def mro(cls) -> list[type]:
        base, *further = cls.__bases__[0].__mro__, *cls.__dict__["further"]
        ancestors = dict.fromkeys((*base[:-1], *(kind for other in further for kind in other.__mro__[:-1])))
        return [cls, *ancestors, object]


@cache
def _peft_class(kind: type[nn.Module], peft_model: type[nn.Module]) -> type:
    """Return a class without instances, for isinstance: a subclass of two classes, with the name of the first."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "further": (peft_model,)}
    return _OfTwoKinds(kind.__name__, (kind,), names)
