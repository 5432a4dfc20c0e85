"""The Python that pyproject.toml names is the oldest one that the dependencies allow."""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PYPROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8"))
OLDEST = "3.11"


def test_the_oldest_python_is_named_everywhere():
    assert PYPROJECT["project"]["requires-python"] == f">={OLDEST}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{OLDEST.replace('.', '')}"
    assert PYPROJECT["tool"]["basedpyright"]["pythonVersion"] == OLDEST


def test_every_dependency_supports_the_oldest_python():
    for line in PYPROJECT["project"]["dependencies"]:
        name = Requirement(line).name
        supported = distribution(name).metadata["Requires-Python"]
        assert f"{OLDEST}.0" in SpecifierSet(supported or ""), f"{name} needs Python {supported}"
