"""Heads of PEFT's task types: modules that a task trains whole beside the adapter."""

from dataclasses import replace
from typing import Final

from torch import nn

from hra_diffusion.adapter.config import HRAConfig

_HEADS: Final = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Names of the heads of each task type, as in PEFT."""


def with_heads(config: HRAConfig, model: nn.Module) -> HRAConfig:
    """Return settings whose modules_to_save have the heads of their task type that a model has."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    heads = [name for name in _HEADS.get(config.task_type or "", ()) if name in names]
    saved = tuple(config.modules_to_save or ())
    if set(heads) <= set(saved):
        return config
    return replace(config, modules_to_save=tuple(dict.fromkeys((*saved, *heads))))
