"""Content of LoRA files that is no LoRA, by the ends of its tensors' names."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.text import shorten

EXTRACT: Final = (
    "Merge it into its base model, and extract a LoRA from the two models, for instance with kohya's "
    "extract_lora_from_models.py."
)
_OMIT: Final = "To import the rest alone, save a copy of the file without these tensors."
_EMBEDDING: Final = "Load it with load_textual_inversion of diffusers."
LOAD: Final = "It needs no import: load_hra_weights loads its folder."

# Kind, pattern of names, and remedy; the first pattern that fits a name decides. The names are those of LyCORIS, kohya,
# A1111, OneTrainer and PEFT.
_KINDS: Final = tuple(
    (kind, re.compile(pattern), remedy)
    for kind, pattern, remedy in (
        ("bundled embeddings of textual inversion", r"^bundle_emb\.", _OMIT),
        ("an embedding of textual inversion", r"(^|\.)(emb_params|string_to_param\..+|clip_[lg])$", _EMBEDDING),
        ("an HRA adapter", r"\.hra_(u|log_magnitude)$", LOAD),
        ("DoRA", r"\.(dora_scale|lora_magnitude_vector(\.weight)?)$", EXTRACT),
        ("LoHa", r"\.hada_(w\d(_[ab])?|t\d)$", EXTRACT),
        ("LoKr", r"\.lokr_(w\d(_[ab])?|t\d)$", EXTRACT),
        ("LoCon with Tucker decomposition", r"\.lora[_.]mid\.weight$", EXTRACT),
        ("IA3", r"(^lora_[^.]+\.(weight|on_input)|\.ia3_l)$", EXTRACT),
        ("BOFT", r"\.boft_\w+(\.\w+)?$", EXTRACT),
        ("OFT or BOFT", r"\.(oft_\w+(\.\w+)?|rescale)$", EXTRACT),
        ("GLoRA", r"\.([ab][12]\.weight|glora_\w+(\.\w+)?)$", EXTRACT),
        ("AdaLoRA", r"\.(lora_E|ranknum)$", EXTRACT),
        ("VeRA", r"\b(vera_lambda_[bd]|vera_[AB])$", EXTRACT),
        ("full differences of weights", r"\.(diff|set_weight|reshape_weight)$", EXTRACT),
        ("differences of biases", r"\.(diff_b|lora_(up|B)\.bias|lora\.up\.bias)$", _OMIT),
        ("differences of normalization layers", r"\.[wb]_norm$", _OMIT),
        ("LoRA of embeddings", r"\.lora_embedding_[AB]$", _OMIT),
        ("trained tokens", r"\btrainable_tokens_\w+$", _OMIT),
        ("a Control-LoRA", r"^lora_controlnet$", EXTRACT),
        ("whole weights or biases", r"^(?!.*lora).*\b(weight|bias)$", _OMIT),
    )
)


def refuse_other_kinds(path: Path, names: Iterable[str]) -> None:
    """Refuse a file with anything that is known to be no LoRA, and name its kind.

    Args:
        path: the file, for the message.
        names: names of its tensors.

    Raises:
        AdapterFileError: a tensor belongs to another kind of adapter.
    """
    by_kind: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        kind = next(((kind, remedy) for kind, pattern, remedy in _KINDS if pattern.search(name)), None)
        if kind is not None:
            by_kind.setdefault(kind, []).append(name)
    if by_kind:
        kinds = "; ".join(f"{kind} ({shorten(tensors, 2)})" for (kind, _), tensors in by_kind.items())
        remedies = {remedy for _, remedy in by_kind}
        remedy = next(remedy for remedy in (LOAD, EXTRACT, _OMIT, _EMBEDDING) if remedy in remedies)
        raise AdapterFileError(
            f"{path} holds {kinds}; only LoRAs of Linear and Conv2d layers can be imported. {remedy}"
        )
