"""Families whose text encoders only read prompts: language models and T5, run once for each prompt.

The pipeline's own ``encode_prompt`` is the reference. Prompts of unequal length are padded to one length, with a mask;
:func:`prompt_lengths` gives the lengths back.
"""

from abc import abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar

import torch
from packaging.version import Version
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad

from hra_diffusion.errors import ModelError
from hra_diffusion.pipelines.components import text_encoders, tokenizer_of
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.families.family import Conditioning, Family, PromptPart

_OLDEST = {"diffusers": "0.42", "transformers": "5"}
"""The oldest versions on which these families are tested."""


class FrozenTextFamily(Family):
    """A family whose text encoders do not train.

    Attributes:
        prompt_tokens: maximum number of a prompt's tokens, template included, as in the pipeline's call.
    """

    prompt_tokens: int = 512
    ignored_text: ClassVar[str] = ""
    """A token that the pipeline leaves out of prompts, such as that of an image."""

    def __init__(self, pipe: Pipeline) -> None:
        """Take a pipeline.

        Raises:
            ModelError: a text encoder is left out, or diffusers or transformers is too old for the family.
        """
        _check_versions(self.title)
        super().__init__(pipe)
        names = (name for name in pipe.components if name.startswith("text_encoder"))
        if missing := [name for name in names if getattr(pipe, name) is None]:
            raise ModelError(
                f"The model has no {' and no '.join(missing)}, without which {self.title} understands no prompt: add "
                "the original model's."
            )

    @abstractmethod
    def embed_prompts(self, prompts: list[str]) -> Conditioning:
        """Encode prompts by the pipeline's own ``encode_prompt``, on the device of the text encoders."""

    def templated(self, prompt: str) -> str:
        """Return a prompt within the chat template, if the tokenizer has one."""
        return prompt

    def prompt_parts(self, text_encoder_trains: bool) -> list[PromptPart]:
        """See :class:`Family`: one part, of all text encoders."""
        encoders = text_encoders(self.pipe)
        part = PromptPart(
            encode=self._embed_prompts,
            text_encoders=list(encoders.values()),
            tokenizers=[tokenizer_of(self.pipe, name) for name in encoders],
            template=(self.pipeline_class, self.templated(""), self.prompt_tokens),
        )
        return [part]

    def truncated_text(self, prompt: str) -> str:
        """See :class:`Family`."""
        prompt = prompt.replace(self.ignored_text, "") if self.ignored_text else prompt
        text = self.templated(prompt)
        tokenizer = tokenizer_of(self.pipe, list(text_encoders(self.pipe))[-1])
        in_template = text != prompt  # a chat template writes the special tokens
        length = self.prompt_tokens - (0 if in_template else tokenizer.num_special_tokens_to_add())
        kept = tokenizer.decode(tokenizer(text, add_special_tokens=not in_template, verbose=False).input_ids[:length])
        return prompt[max(0, len(kept) - text.index(prompt)) :].strip()

    @torch.no_grad()
    def _embed_prompts(self, prompts: list[str]) -> Conditioning:
        return {name: embedding.cpu() for name, embedding in self.embed_prompts(prompts).items()}


def _check_versions(title: str) -> None:
    for library, oldest in _OLDEST.items():
        if Version(installed := version(library)) < Version(oldest):
            raise ModelError(
                f"{title} needs {library} {oldest} or newer; found {installed}. "
                f"Install it: pip install --upgrade {library}"
            )


def pad_prompts(embeddings: Sequence[Tensor], length: int) -> Conditioning:
    """Return embeddings (tokens, width) of unequal length as ``prompt`` and ``prompt_mask``.

    Their shapes are (prompts, length, width) and (prompts, length); the mask is False for padding, which is zero.
    """
    mask = torch.zeros(len(embeddings), length, dtype=torch.bool)
    for row, embedding in zip(mask, embeddings, strict=True):
        row[: len(embedding)] = True
    padded = [pad(embedding, (0, 0, 0, length - len(embedding))) for embedding in embeddings]
    return {"prompt": torch.stack(padded), "prompt_mask": mask}


def prompt_lengths(mask: Tensor) -> list[int]:
    """Return the number of tokens of each prompt for a mask (prompts, length); all of them without data.

    It waits for the device: a denoiser that takes lists has to know the lengths.
    """
    return [mask.shape[1]] * len(mask) if isinstance(mask, FakeTensor) else mask.sum(1).tolist()
