"""Where the reflections go, and how many."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Where the reflections go, and how many."""

    rank: int = 8
    """Reflections a layer; even, so that the adapter starts as the identity."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers of the denoiser that are adapted: ends of their names, or all-linear."""
    train_text_encoder: bool = False
    """Adapt the text encoder too; both CLIPs of SDXL and SD 3."""
    train_text_encoder_ti: bool = False
    """Learn new words, too: those in angle brackets in the instance prompt, "a photo of a <sks> dog". They are saved
    with the adapter."""
    num_new_tokens_per_abstraction: int = 2
    """Vectors that stand for each new word, one after the other."""
    initializer_concept: str | None = None
    """What new words mean at first, for example the class; by default, what they mean without their brackets."""
    text_encoder_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Layers of the text encoders that are adapted."""

    @property
    def text_encoder_trains(self) -> bool:
        """Whether prompts are read anew in each step."""
        return self.train_text_encoder or self.train_text_encoder_ti
