"""The base model of a run."""

from dataclasses import dataclass
from typing import Any, Literal

from hra_diffusion.formats.run_folder import BASE_OPTIONS

Quantization = Literal["int8", "fp8", "nf4"]


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
    on the hub, of an autoencoder or of a model with one, or a single file."""
    pretrained_config_name_or_path: str | None = None
    """Configuration of a base model in a single file: a model folder, of which the JSON files suffice, or a name on the
    hub. By default it is the folder beside the file with the file's name, or a guess from the weights."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """Prediction of the denoiser: noise, v or the image. By default that of a single file's marks or the scheduler."""
    rescale_betas_zero_snr: bool = False
    """Zero terminal SNR: rescale the noise schedule so that its last step is pure noise, for very dark and very bright
    images; not for models that predict noise."""
    clip_skip: int | None = None
    """Clip skip: number of CLIP's last layers that prompts skip, 1 for many anime models (2 in A1111 and kohya)."""
    quantization: Quantization | None = None
    """Quantization of the frozen denoiser during training: 8 bits (int8, fp8) or 4 bits (nf4); none by default. The
    command generate always uses the whole model."""

    allow_distilled: bool = False
    """Train a distilled model, such as a Turbo: training undoes its distillation."""

    @property
    def loading(self) -> dict[str, Any]:
        """The options of ``pipelines.load_pipeline`` that every later use of the adapter needs, too."""
        return {option: getattr(self, name) for name, option in BASE_OPTIONS.items()}
