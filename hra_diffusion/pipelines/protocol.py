"""The type of a diffusers pipeline: the part of its interface that this package uses."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch


class Pipeline(Protocol):
    """A diffusers pipeline with its components, of any model family.

    Components are attributes, too (``pipe.unet``, ``pipe.scheduler``), and `components` lists them. Their names depend
    on the model family: the denoiser is a UNet or a transformer, and there are one to three text encoders.
    """

    @property
    def components(self) -> dict[str, Any]:
        """The pipeline's components, by name."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of model_index.json."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the models."""
        ...

    @property
    def name_or_path(self) -> str:
        """The model's folder or its name on the hub."""
        ...

    def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate images: they are the ``images`` of the result."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> "Pipeline":
        """Move the models to a device or convert them to a dtype, as `torch.nn.Module.to` does."""
        ...
