"""A module that wraps a whole model and can stand in its place."""

import inspect
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


class ModelProxy(nn.Module):
    """Looks and acts like the model inside.

    What is not found here is looked up there, and `isinstance` takes this for one of the model's class as well as for
    what it is: libraries that sort a pipeline's components by class find the model. And whoever saves the model, by
    whatever way, saves what `ejected` leaves of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Where a class comes from is read off its instances, too: diffusers writes it into a pipeline's index.
        self.__dict__["__module__"] = type(model).__module__
        if callable(getattr(model, "save_pretrained", None)):
            model.__dict__["save_pretrained"] = self.save_base

    def ejected(self) -> AbstractContextManager[nn.Module]:
        """Give the model as it is to be saved, within a `with` block."""
        raise NotImplementedError

    def save_base(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model by its own save_pretrained, without what was put into it.

        Arguments that are None, or that its save_pretrained does not have, are left out.
        """
        with self.ejected() as base:
            save: Any = getattr(type(base), "save_pretrained")  # noqa: B009 (not the guard on the instance)
            known = inspect.signature(save).parameters
            open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
            kept = {k: v for k, v in kwargs.items() if v is not None and (open_ended or k in known)}
            return save(base, *args, **kept)

    def leave(self) -> None:
        """Give the model its own save_pretrained back."""
        self.model.__dict__.pop("save_pretrained", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the model, by its own rules."""
        self.model.to(*args, **kwargs)
        return self

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The model's class, once there is a model."""
        model = self.__dict__.get("_modules", {}).get("model")
        return type(self) if model is None else type(model)

    def __getattr__(self, name: str) -> Any:
        """Look up what is not here in the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as what this is, not as what it looks like."""
        return object.__new__, (type(self),), self.__dict__

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """As `__reduce__`, for any protocol."""
        return self.__reduce__()
