"""The base model of a run."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base model, whose weights stay frozen."""

    pretrained_model_name_or_path: str | None = None
    """Base model: a folder in diffusers' layout or a name on the Hugging Face hub; the embedded base by default."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    variant: str | None = None
    """Variant of the weight files, such as fp16."""
    pretrained_vae_model_name_or_path: str | None = None
    """Autoencoder (VAE) in place of the model's, such as one for SDXL that works in half precision: a folder or a name
    on the hub."""
    rescale_betas_zero_snr: bool = False
    """Zero terminal SNR: rescale the noise schedule so that its last step is pure noise, for very dark and very bright
    images; not for models that predict noise."""
    quantization: Literal["int8", "nf4"] | None = None
    """Quantization of the frozen denoiser during training: 8 bits (int8) or 4 bits (nf4); none by default. The command
    generate always uses the whole model."""

    @property
    def loading(self) -> dict[str, Any]:
        """The options of ``pipelines.load_pipeline`` that every later use of the adapter needs, too."""
        return {
            "vae": self.pretrained_vae_model_name_or_path,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
        }
