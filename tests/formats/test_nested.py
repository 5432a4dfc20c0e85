"""Nested values are restored from JSON and safetensors unchanged, such as the state of every optimizer."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.nested import flatten, restore

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
TENSORS = st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor)
NESTED = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(0, 3) | st.sampled_from(["0", "a", "a/b", "tensor", "dict"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def through_files(value):
    described, tensors = flatten(value)
    return restore(json.loads(json.dumps(described)), load(save(tensors)))


def same(one, other) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(NESTED)
@settings(max_examples=200, deadline=None)
def test_a_nested_value_is_restored_unchanged(value):
    assert same(through_files(value), value)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SGD, torch.optim.NAdam])
def test_an_optimizers_state_is_restored(kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = kind(
        [{"params": model[0].parameters(), "lr": 0.1, "component": "a"}, {"params": model[1].parameters()}]
    )
    model(torch.randn(3, 4)).square().mean().backward()
    optimizer.step()
    assert same(through_files(optimizer.state_dict()), optimizer.state_dict())


def test_tensors_that_share_memory_are_kept_apart():
    tensor = torch.arange(6.0).view(2, 3)
    assert same(through_files([tensor, tensor, tensor.T]), [tensor, tensor, tensor.T])


def test_values_that_need_pickle_are_refused():
    with pytest.raises(TypeError, match="state/0 holds a object"):
        flatten({"state": [object()]})


@pytest.mark.parametrize("damaged", [{}, {"dict": 3}, {"tensor": "b"}, {"set": []}, {"dict": [[1]]}, {"a": 1, "b": 2}])
def test_a_damaged_description_is_refused(damaged):
    with pytest.raises(AdapterFileError, match="damaged"):
        restore(damaged, {"a": torch.zeros(1)})
