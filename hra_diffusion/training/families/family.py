"""A family of models: what differs between them is how they read a prompt and how their denoiser is called."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hra_diffusion.pipelines.components import tokenizer_of

Condition = dict[str, Tensor]
"""What the denoiser is told, by name; the first dimension of each tensor counts prompts or examples."""


class Family(ABC):
    """A loaded model of some family, as training sees it.

    Attributes:
        pipe: the diffusers pipeline; its adapted components are replaced in place.
    """

    pipeline_class: ClassVar[str]
    denoiser_name: ClassVar[str] = "unet"
    """Pipeline component that denoises."""
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Pipeline components that read the prompt and can be trained; each has a tokenizer of the same number."""
    load_options: ClassVar[Mapping[str, Any]] = {}
    """What is passed on when the pipeline is loaded."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @property
    def model(self) -> Any:
        """What denoises, as it is in the pipeline now: the frozen model, or the adapted one."""
        return getattr(self.pipe, self.denoiser_name)

    def unreached(self, name: str) -> str | None:
        """Return a regular expression of modules of a component that no prediction depends on, if there are some.

        Nothing would be learned there, and several devices would wait for its gradients.
        """
        return None

    @abstractmethod
    def read(self, tokens: Condition) -> Condition:
        """Embed token ids of shape (prompts, tokens), named as their text encoders, with these as they are."""

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Call the denoiser on latents (B, C, h, w) in its own precision; timesteps (B,); returns (B, C, h, w)."""

    def condition(self, prompts: list[str], text_encoder_trains: bool) -> Condition:
        """Return what is known of each prompt ahead of training, on the CPU.

        That is token ids while the text encoders train, and otherwise what they make of them.
        """
        tokens = {name: self._tokens(name, prompts) for name in self.text_encoder_names}
        if text_encoder_trains:
            return tokens
        with torch.no_grad():
            return {name: embedding.cpu() for name, embedding in self.read(tokens).items()}

    def denoiser(self, text_encoder_trains: bool) -> "Denoiser":
        """Return the module that maps (noisy latents, timesteps, condition) to the prediction."""
        return Denoiser(self, text_encoder_trains)

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that the text encoders do not read, since it is longer than they can; often ""."""
        ends = [""]
        for name in self.text_encoder_names:
            tokenizer, spelled = self._spelled(name, [prompt])
            (ids,) = tokenizer(spelled, verbose=False).input_ids
            ends.append(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1]).strip())  # -1: the end's own token
        return max(ends, key=len)

    def _spelled(self, text_encoder_name: str, prompts: list[str]) -> tuple[Any, list[str]]:
        """Return a text encoder's tokenizer, and prompts with a word for each vector of a learned one."""
        tokenizer = tokenizer_of(self.pipe, text_encoder_name)
        spell = getattr(self.pipe, "maybe_convert_prompt", lambda prompts, _: prompts)
        return tokenizer, spell(prompts, tokenizer)

    def _tokens(self, text_encoder_name: str, prompts: list[str]) -> Tensor:
        tokenizer, spelled = self._spelled(text_encoder_name, prompts)
        return tokenizer(
            spelled,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids


class Denoiser(nn.Module):
    """One module for everything that trains, so that devices synchronize it as one."""

    def __init__(self, family: Family, text_encoder_trains: bool) -> None:
        super().__init__()
        names = (family.denoiser_name, *(family.text_encoder_names if text_encoder_trains else ()))
        self.parts = nn.ModuleDict({name: getattr(family.pipe, name) for name in names})
        self.family = family
        self.text_encoder_trains = text_encoder_trains
        # The frozen model's: adapters stay in float32.
        self.dtype: torch.dtype = self.parts[family.denoiser_name].dtype

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Predict for latents (B, C, h, w), timesteps (B,) and what is known of each example's prompt."""
        if self.text_encoder_trains:
            condition = condition | self._read(condition)
        return self.family.predict(noisy.to(self.dtype), timesteps, condition)

    def _read(self, condition: Condition) -> Condition:
        """Read each different prompt once: a batch repeats few."""
        tokens = {name: condition[name] for name in self.family.text_encoder_names}
        together, of_example = torch.cat(list(tokens.values()), 1).unique(dim=0, return_inverse=True)
        widths = [ids.shape[1] for ids in tokens.values()]
        read = self.family.read(dict(zip(tokens, together.split(widths, 1), strict=True)))
        return {name: embedding[of_example] for name, embedding in read.items()}
