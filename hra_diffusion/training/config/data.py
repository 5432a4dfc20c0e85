"""What a run learns from: a base model, images of the subject, and images of its class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model, which is never changed."""

    pretrained_model_name_or_path: str | None = None
    """A folder in diffusers' layout, or a name on the Hugging Face hub; the embedded base by default."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    variant: str | None = None
    """Variant of the weight files, for example fp16."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder in place of the model's own, such as one for SDXL that works in half precision."""
    rescale_betas_zero_snr: bool = False
    """Let noise go all the way, so that images may be as dark or bright as a prompt wants; not for models that
    predict noise."""
    quantization: Literal["int8", "nf4"] | None = None
    """Keeps the frozen denoiser in fewer bits while training; images of generate are drawn with the whole model."""

    @property
    def loading(self) -> dict[str, Any]:
        """What the model is loaded with wherever an adapter of it is used: options of ``pipelines.load_pipeline``."""
        return {
            "vae": self.pretrained_vae_model_name_or_path,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
        }


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What is seen of images, whatever they are for."""

    resolution: int | None = None
    """Side of the training images in pixels; the model's own by default."""
    center_crop: bool = False
    """Take the middle of images that are not square; otherwise both ends and the middle alternate."""
    random_flip: bool = False
    """Show images mirrored half of the time; not for subjects whose sides differ."""
    color_jitter: float = 0.0
    """How far brightness, contrast and saturation vary, for example 0.1; each crop is then seen in its own colors and
    in three others."""
    background_color: str = "white"
    """What is seen through transparent images: a name, or "#rrggbb"."""
    cache_dir: Path | None = None
    """Folder in which encoded images and prompts are kept for further runs; in memory alone by default."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ImageConfig):
    """The images of the subject, or of several."""

    instance_data_dir: Path | None = None
    """Folder with the images of the subject, or with such a folder for each of several subjects; a subject.toml
    beside the images may hold the prompts, a text file beside an image or a metadata.jsonl its caption."""
    instance_prompt: str | None = None
    """What images without a caption show, with a rare word for the subject: "a photo of a sks dog"."""
    aspect_ratio_buckets: bool = False
    """Keep the shapes of images: sizes of about resolution × resolution pixels instead of squares."""
    mask_data_dir: Path | None = None
    """Folder with a mask for each image, of the same name: white is learned, black counts little."""
    alpha_mask: bool = False
    """Take the transparency of images for such masks."""
    unmasked_weight: float = 0.1
    """How much black counts, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Prior preservation: images of the class, seen along, keep the class from turning into the subject."""

    with_prior_preservation: bool = False
    """Train on images of the class too."""
    class_prompt: str | None = None
    """The class without the rare word: "a photo of a dog"."""
    class_data_dir: Path | None = None
    """Folder with images of the class; what is missing there is drawn by the base model. With several classes, a
    folder for each. class_images in the output folder by default."""
    num_class_images: int = 100
    """How many images of each class there are to be."""
    prior_loss_weight: float = 1.0
    """Weight of the class images' loss."""
    prior_target: Literal["image", "base"] = "image"
    """What is to be predicted for images of the class: what leads to the image, as in the paper, or what the base
    model predicts, so that its idea of the class is kept and not what so few images show of it. That takes one more
    forward pass over them."""
    sample_batch_size: int = 4
    """How many class images are drawn at once."""
