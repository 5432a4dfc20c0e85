"""The Python that pyproject.toml names is the oldest one that the dependencies allow."""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.oldest import oldest

PYPROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8"))
OLDEST = "3.11"


def test_the_oldest_python_is_named_everywhere():
    assert PYPROJECT["project"]["requires-python"] == f">={OLDEST}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{OLDEST.replace('.', '')}"
    assert PYPROJECT["tool"]["basedpyright"]["pythonVersion"] == OLDEST


def test_every_dependency_has_a_lower_bound_that_the_oldest_set_installs():
    names = {Requirement(line).name for line in oldest([f"{PYPROJECT['project']['name']}[test]"])}
    assert {"gradio", "peft", "pytest", "tensorboard"} < names and "torchao" not in names
    assert {Requirement(line).specifier for line in oldest(["tqdm>=4.66.3,<5"])} == {SpecifierSet("==4.66.3")}
    with pytest.raises(ValueError, match=r"tqdm<5 in pyproject\.toml needs one lower bound"):
        list(oldest(["tqdm<5"]))


def test_every_dependency_supports_the_oldest_python():
    for line in PYPROJECT["project"]["dependencies"]:
        name = Requirement(line).name
        supported = distribution(name).metadata["Requires-Python"]
        assert f"{OLDEST}.0" in SpecifierSet(supported or ""), f"{name} needs Python {supported}"
