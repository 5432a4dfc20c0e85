"""Clip skip: prompt embeddings of an earlier layer of CLIP, as anime models of Stable Diffusion 1.5 expect them.

The count is diffusers': 1 is the layer before the last. A1111's and kohya's count is one more, so that 2 is this layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.components import text_encoders
from hra_diffusion.pipelines.protocol import Pipeline

_DEFAULT = "_hra_clip_skip"


def default_clip_skip(pipe: Pipeline) -> int | None:
    """Return the number of CLIP's layers that a pipeline skips by default; None for the family's usual layer."""
    return getattr(pipe, _DEFAULT, None)


def set_clip_skip(pipe: Pipeline, clip_skip: int | None) -> None:
    """Let a pipeline skip CLIP's last layers by default; its argument ``clip_skip`` overrides the default.

    Raises:
        ConfigError: the text encoders have not so many layers, or there is no CLIP text encoder.
    """
    check_clip_skip(pipe, clip_skip)
    if not _clip_text_encoders(pipe):
        return
    encode: Any = getattr(pipe, "encode_prompt")  # noqa: B009 - the protocol lists no methods of single families

    @wraps(encode)
    def encode_prompt(*args: Any, **options: Any) -> Any:
        if options.get("clip_skip") is None:
            if clip_skip is None:
                return encode(*args, **options)
            options["clip_skip"] = clip_skip
        with _text_models(pipe):
            return encode(*args, **options)

    setattr(pipe, "encode_prompt", encode_prompt)  # noqa: B010
    setattr(pipe, _DEFAULT, clip_skip)


@contextmanager
def _text_models(pipe: Pipeline) -> Iterator[None]:
    """Give text encoders of transformers 5 the attribute ``text_model`` that diffusers 0.42 reads to skip layers.

    It is no submodule, and stays within the block: diffusers takes it for a part of the names of a LoRA's modules.
    """
    encoders = [encoder for encoder in _clip_text_encoders(pipe).values() if not hasattr(encoder, "text_model")]
    for encoder in encoders:
        object.__setattr__(encoder, "text_model", encoder)
    try:
        yield
    finally:
        for encoder in encoders:
            object.__delattr__(encoder, "text_model")


def check_clip_skip(pipe: Pipeline, clip_skip: int | None) -> None:
    """Raise ConfigError if a pipeline's text encoders have not so many layers to skip."""
    if clip_skip is None:
        return
    encoders = _clip_text_encoders(pipe)
    if not encoders:
        raise ConfigError(f"--clip_skip is {clip_skip}, but the model has no CLIP text encoder: leave it out.")
    usual = 0 if len(encoders) == 1 else 1  # two encoders, of SDXL and SD 3: from the layer before the last
    most = min(encoder.config.num_hidden_layers for encoder in encoders.values()) - usual
    if not 0 <= clip_skip <= most:
        raise ConfigError(
            f"--clip_skip is {clip_skip}, and the text encoders have {most + usual} layers: give a number from 0 "
            f"to {most}."
        )


def _clip_text_encoders(pipe: Pipeline) -> dict[str, Any]:
    """Return a pipeline's CLIP text encoders, by name, adapted or not."""
    return {
        name: model
        for name, model in text_encoders(pipe).items()
        if getattr(getattr(model, "config", None), "model_type", "") in ("clip", "clip_text_model")
    }
