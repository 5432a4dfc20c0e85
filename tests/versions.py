"""Tests of what a library has only since a version that is newer than the oldest supported one."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def older(library: str, than: str) -> bool:
    """Return whether a library is older than a version."""
    return Version(version(library)) < Version(than)


transformer_families = pytest.mark.skipif(
    older("diffusers", "0.42") or older("transformers", "5"), reason="families of 2025 and later: diffusers 0.42"
)
random_weights_of_transformers_5 = pytest.mark.skipif(
    older("transformers", "5"), reason="transformers 4 draws other random weights for a tiny text encoder"
)
# Users offload from an accelerator to the CPU; tests do it without the accelerator.
offloads_groups = pytest.mark.skipif(
    older("diffusers", "0.41"), reason="diffusers 0.41: groups of layers are offloaded without an accelerator"
)
