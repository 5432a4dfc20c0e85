"""The HRA adapter of a run."""

from dataclasses import dataclass
from typing import Literal

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention layers of a UNet or a transformer."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """HRA adapter: number of reflections, target modules and textual inversion."""

    init_adapter: str | None = None
    """Adapter to start from, instead of the identity: its folder, its run's, or a hub name. Rank and target modules are
    the adapter's; with train-control it is a control."""
    rank: int = 8
    """Rank: number of reflections in each layer; even, so that the adapter starts as the identity."""
    rank_pattern: dict[str, int] | None = None
    """Ranks of some layers, as JSON: '{"to_v": 16, "mid_block.*to_q": 4}'. A key is the end of a layer's name, or a
    regular expression of it, as in PEFT's LoRA."""
    use_magnitude: bool = False
    """Magnitudes: train a factor for each output of a layer, too. The exported adapter is a DoRA."""
    init_weights: Literal["random", "gradient"] = "random"
    """Start of the reflections, in pairs that cancel each other: random, or from the gradient of a few batches before
    the first step."""
    target_modules: tuple[str, ...] | None = None
    """Target modules of the denoiser: ends of the names of its layers, or all-linear. By default those of the model's
    family; to_q to_k to_v to_out.0 for Stable Diffusion."""
    slot: str | None = None
    """Slot i/n, such as 1/4: train within the i-th of n orthogonal subspaces of each layer's inputs. Adapters of
    different slots commute, and their exported LoRAs add exactly."""
    orthogonal_to: tuple[str, ...] | None = None
    """Adapters to be orthogonal to: folders, runs' output folders, or hub names. The new adapter commutes with each of
    them."""
    train_text_encoder: bool = False
    """Train the text encoder, too; both CLIP encoders of SDXL and SD 3."""
    train_text_encoder_ti: bool = False
    """Textual inversion: train embeddings of the words in angle brackets in the instance prompt, "a photo of a <sks>
    dog", too. They are saved with the adapter."""
    num_new_tokens_per_abstraction: int = 2
    """Number of tokens, one embedding each, for every word in angle brackets."""
    initializer_concept: str | None = None
    """Words whose embeddings initialize the new tokens, such as the class; by default, the word in the brackets."""
    text_encoder_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Target modules of the text encoders."""

    @property
    def text_encoder_trains(self) -> bool:
        """Whether prompts are encoded anew in each step."""
        return self.train_text_encoder or self.train_text_encoder_ti
