"""Stand-in for a whole model."""

import inspect
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


class ModelProxy(nn.Module):
    """A wrapper with the attributes and the class of the wrapped model.

    Missing attributes are those of the model, and `isinstance` accepts the model's class, too: libraries that sort the
    components of a pipeline by class find the model. Every way of saving the model saves the result of `_ejected`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # diffusers reads the module of a component's class from the instance, and writes it into a pipeline's index.
        self.__dict__["__module__"] = type(model).__module__
        if callable(getattr(model, "save_pretrained", None)):
            model.__dict__["save_pretrained"] = self._save_base

    def _ejected(self) -> AbstractContextManager[nn.Module]:
        """Yield the model for saving within a `with` block."""
        raise NotImplementedError

    def _save_base(self, *args: Any, **kwargs: Any) -> Any:
        """Save the bare model by its own save_pretrained, without unknown arguments and None."""
        with self._ejected() as base:
            save: Any = getattr(type(base), "save_pretrained")  # noqa: B009 (not the guard on the instance)
            known = inspect.signature(save).parameters
            open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
            kept = {k: v for k, v in kwargs.items() if v is not None and (open_ended or k in known)}
            return save(base, *args, **kept)

    def _leave(self) -> None:
        """Restore the model's own save_pretrained."""
        self.model.__dict__.pop("save_pretrained", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the model by its own method."""
        self.model.to(*args, **kwargs)
        return self

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The class of the model."""
        model = self.__dict__.get("_modules", {}).get("model")
        return type(self) if model is None else type(model)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle this object by its real class."""
        return object.__new__, (type(self),), self.__dict__

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle this object by its real class, for any protocol."""
        return self.__reduce__()
