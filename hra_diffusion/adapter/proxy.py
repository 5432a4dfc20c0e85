"""A module that wraps a whole model and can stand in its place."""

from typing import Any

from torch import nn


class ModelProxy(nn.Module):
    """Looks and acts like the model inside.

    What is not found here is looked up there, and `isinstance` takes this for one of the model's class as well as for
    what it is: libraries that sort a pipeline's components by class find the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Where a class comes from is read off its instances, too: diffusers writes it into a pipeline's index.
        self.__dict__["__module__"] = type(model).__module__

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The model's class, once there is a model."""
        model = self.__dict__.get("_modules", {}).get("model")
        return type(self) if model is None else type(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the model, by its own rules."""
        self.model.to(*args, **kwargs)
        return self

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
