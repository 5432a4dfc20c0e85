"""Tests that need a newer library than the oldest supported one."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def older(library: str, than: str) -> bool:
    """Return whether a library is older than a version."""
    return Version(version(library)) < Version(than)


def needs(library: str, oldest: str, reason: str) -> pytest.MarkDecorator:
    """Skip a test where a library is older than a version; the reason says what came with the version."""
    return pytest.mark.skipif(older(library, oldest), reason=f"{library} {oldest}: {reason}")


# Users offload to a CPU, and not from one.
MODELS_ON_A_CPU = pytest.param("model", marks=needs("diffusers", "0.35", "models offload without an accelerator"))
GROUPS_ON_A_CPU = pytest.param("group", marks=needs("diffusers", "0.41", "groups offload without an accelerator"))
