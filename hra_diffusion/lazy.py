"""Lazy exports of a package: a name's module is imported when the name is first used.

Source: Scientific Python's SPEC 1, lazy loading (https://scientific-python.org/specs/spec-0001/).
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(
    package: str, exports: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return a package's ``__getattr__``, ``__dir__`` and ``__all__``.

    Args:
        package: the package's ``__name__``.
        exports: public names, by module.
    """
    modules = {name: module for module, names in exports.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    def list_names() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *modules})

    return get_attribute, list_names, sorted(name for name in modules if not name.startswith("_"))
