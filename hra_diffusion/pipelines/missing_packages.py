"""Packages that a model's components need besides those of this project: transformers replaces their classes."""

from collections.abc import Mapping
from typing import Any

import transformers

from hra_diffusion.errors import ModelError


def check_packages(name: str, index: Mapping[str, Any]) -> None:
    """Check that the classes of a model's components can be imported, before its weights are read.

    Args:
        name: the model's name, for messages.
        index: the contents of its model_index.json.

    Raises:
        ModelError: a component needs a package that is not installed.
    """
    for component, kind in index.items():
        if isinstance(kind, list | tuple) and list(kind[:1]) == ["transformers"]:
            missing = getattr(getattr(transformers, kind[1], None), "_backends", ())
            if missing:
                raise ModelError(
                    f"The {component} of {name!r} is a {kind[1]}, which needs {' and '.join(missing)}: "
                    f"pip install {' '.join(missing)}"
                )
