import subprocess
import sys

import pytest

import hra_diffusion


def test_importing_the_package_imports_no_large_library():
    heavy = "('torch', 'numpy', 'diffusers', 'transformers')"
    code = f"import sys, hra_diffusion; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_adapter_needs_no_diffusers_transformers_or_peft():
    code = (
        "import sys; from hra_diffusion import HRAConfig, HRAModel; from torch import nn;"
        "HRAModel(nn.Sequential(nn.Linear(4, 4)), HRAConfig(target_modules=['0']));"
        "print([m for m in ('diffusers', 'transformers', 'peft', 'accelerate') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_exists():
    for name in hra_diffusion.__all__:
        assert getattr(hra_diffusion, name).__name__ == name
        assert name in dir(hra_diffusion)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hra_diffusion.nonsense
