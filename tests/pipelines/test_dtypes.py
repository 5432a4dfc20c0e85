"""Dtypes by name, as every argument `dtype` takes them."""

import pytest
import torch

from hra_diffusion import ConfigError, load_pipeline
from hra_diffusion.dtypes import DTYPES, to_dtype


def test_a_dtype_has_a_short_name_torchs_name_and_itself():
    for name, dtype in DTYPES.items():
        assert to_dtype(name) is to_dtype(dtype) is to_dtype(str(dtype)) is to_dtype(str(dtype).split(".")[1]) is dtype


@pytest.mark.parametrize("dtype", ["fp61", "int8", torch.int8, ["fp16"], "x" * 1000])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ConfigError, match=r"dtype .{1,60} is not supported(: did you mean|; known are)"):
        to_dtype(dtype)


def test_a_pipeline_is_loaded_in_a_dtype_by_name(tiny_sd):
    pipe = load_pipeline(str(tiny_sd), dtype="bf16")
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        load_pipeline(str(tiny_sd), dtype="bf61")
