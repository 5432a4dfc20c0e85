"""Print the oldest supported versions of all dependencies, one requirement a line, for ``pip install --requirement``.

They are the lower bounds in pyproject.toml, without torch, of which few versions are on PyPI for a CPU alone.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
NEWER = {"deepspeed", "int8"}
"""Extras that need newer libraries than the others; their tests are skipped where they are not installed."""


def oldest(requirements: list[str]) -> Iterator[str]:
    """Yield each requirement of this system with its lower bound as its version, those of own extras included.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            for extra in sorted(requirement.extras - NEWER):
                yield from oldest(PROJECT["optional-dependencies"][extra])
            continue
        if requirement.marker and not requirement.marker.evaluate():
            continue
        requirement.marker = None
        bounds = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
        if len(bounds) != 1:
            raise ValueError(f"{requirement} in pyproject.toml needs one lower bound.")
        requirement.specifier = SpecifierSet(f"=={bounds[0]}")
        if requirement.name != "torch":
            yield str(requirement)


if __name__ == "__main__":
    print("\n".join(oldest([*PROJECT["dependencies"], f"{PROJECT['name']}[test]"])))
