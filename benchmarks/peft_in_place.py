"""pytest plug-in: PEFT's functions and classes use HRAModel and HRAConfig of this project for HRA adapters.

`benchmarks/peft_suite.py` runs PEFT's tests with it. Other methods of PEFT stay as they are.
"""

import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hra_diffusion import HRAConfig, HRAModel, peft_functions
from hra_diffusion.adapter.layer import HRALayer

_FUNCTIONS = (
    "get_peft_model",
    "inject_adapter_in_model",
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
    "get_base_model_state_dict",
    "set_base_model_state_dict",
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Replace PEFT's names before the first test imports them."""
    torch.set_num_threads(1)
    peft.HRAConfig = HRAConfig  # pyright: ignore[reportAttributeAccessIssue]
    for name in _FUNCTIONS:
        setattr(peft, name, _replaced(getattr(peft, name), getattr(peft_functions, name)))
    theirs = peft.PeftModel.from_pretrained.__func__  # pyright: ignore[reportFunctionMemberAccess]
    peft.PeftModel.from_pretrained = classmethod(_from_pretrained(theirs))  # pyright: ignore[reportAttributeAccessIssue]
    BaseTunerLayer.register(HRALayer)  # an abstract base class: the tests look for the adapted layers by it
    vars(importlib.import_module("tests.testing_utils"))["hub_online_once"] = _offline


@contextlib.contextmanager
def _offline(model_id: str) -> Iterator[None]:
    """Load every model from the cache; PEFT's own function asks the hub the first time."""
    yield


def _replaced(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of PEFT that calls ours with HRAConfig, or with a model that HRAModel has adapted."""

    @functools.wraps(theirs)
    def function(*arguments: Any, **options: Any) -> Any:
        mine = any(isinstance(argument, HRAConfig) or _is_adapted(argument) for argument in arguments)
        if mine:
            options.pop("unwrap_compiled", None)  # ours always does
        return (ours if mine else theirs)(*arguments, **options)

    return function


def _is_adapted(argument: Any) -> bool:
    return isinstance(argument, nn.Module) and any(isinstance(module, HRALayer) for module in argument.modules())


def _from_pretrained(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(cls: Any, model: Any, model_id: Any, *arguments: Any, **options: Any) -> Any:
        path = Path(model_id) / "adapter_config.json"
        if path.exists() and json.loads(path.read_text("utf-8"))["peft_type"] == "HRA":
            return HRAModel.from_pretrained(model, model_id, *arguments, **options)
        return theirs(cls, model, model_id, *arguments, **options)

    return from_pretrained
