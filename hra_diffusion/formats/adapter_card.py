"""The model card of an adapter of any model: README.md with the hub's metadata on top, as PEFT writes one."""

from typing import Final

from huggingface_hub import ModelCard, ModelCardData

CARD: Final = "README.md"
"""The file of a model card."""

_TEXT = """---
{data}
---

# Adapter

An adapter{base}, made by [Householder Reflection Adaptation](https://arxiv.org/abs/2405.17484) with hra_diffusion. PEFT
reads it, too.
"""

_PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""The hub's name of each task type of PEFT."""


def adapter_card(text: str | None, base_model: str | None, task_type: str | None) -> str:
    """Return a new model card, or a present one with complete metadata.

    Args:
        text: the present card, if any; its own metadata have priority.
        base_model: the base model; the hub links to it if it is the id of a repository.
        task_type: PEFT's task type.
    """
    is_id = base_model is not None and base_model.count("/") == 1
    data = ModelCardData(
        library_name="peft",
        base_model=base_model if is_id else None,
        pipeline_tag=_PIPELINES.get(task_type or ""),
        tags=["hra", "peft"],
    )
    if text is None:
        return _TEXT.format(data=data.to_yaml(), base=f" of {base_model}" if base_model else "")
    card = ModelCard(text, ignore_metadata_errors=True)
    for name, value in data.to_dict().items():
        present = card.data.get(name)
        if name == "tags":
            setattr(card.data, name, sorted({*(present or ()), *value}))
        elif present is None:
            setattr(card.data, name, value)
    return str(card)
