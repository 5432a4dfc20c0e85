"""The training images of a subject and of its class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Training images: crops, augmentation and cache."""

    center_crop: bool = False
    """Center crop of images that are not square; otherwise crops of both ends and of the center alternate."""
    random_flip: bool = False
    """Random horizontal flip of half of the images; not for subjects whose sides differ."""
    color_jitter: float = 0.0
    """Color jitter: range of brightness, contrast and saturation, from 0 to less than 1, such as 0.1 for factors from
    0.9 to 1.1. Each crop occurs in the image's colors and in three others."""
    background_color: str = "white"
    """Background color of transparent images: a name, or "#rrggbb"."""
    cache_dir: Path | None = None
    """Cache folder of encoded images and prompts for later runs; memory only by default."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ImageConfig):
    """Images of the subject, or of several subjects."""

    instance_data_dir: Path | None = None
    """Image folder of the subject, or a folder with one such folder for each of several subjects. A subject.toml beside
    the images may hold the prompts; a text file beside an image, or a metadata.jsonl, its caption."""
    instance_prompt: str | None = None
    """Prompt of images without a caption, with a trigger word for the subject: "a photo of a sks dog". By default, it
    follows from the folder's name."""
    resolution: int | tuple[int, ...] | None = None
    """Resolution: side of the training images in pixels, a multiple of the model's size step; the model's default size
    by default. Several, such as 512 768, train on each image in each of them; images are generated in the largest."""
    caption_dropout_rate: float = 0.0
    """Caption dropout: share of the examples, of the subject and its class, without their caption, from 0 to 1; 0.05 is
    common."""
    shuffle_caption: bool = False
    """Shuffle captions: the tags of a caption, between separators, occur in up to ten orders."""
    keep_tokens: int = 0
    """Number of a caption's first tags that shuffle_caption leaves in place, such as one with the trigger word."""
    caption_separator: str = ","
    """Separator of a caption's tags."""
    aspect_ratio_buckets: bool = False
    """Aspect-ratio buckets: sizes of about resolution × resolution pixels in several shapes, instead of squares."""
    mask_data_dir: Path | None = None
    """Mask folder: one image for each training image, of the same name. White counts fully, black as
    unmasked_weight."""
    alpha_mask: bool = False
    """Transparency of the images as masks."""
    unmasked_weight: float = 0.1
    """Loss weight of a mask's black, from 0 to 1."""
    validation_split: float = 0.0
    """Validation split: share of each subject's images that are held out of training for the validation loss, from 0 to
    less than 1; at least one image. Without it, the validation loss is on the images in the sub-folder held_out."""

    @property
    def resolutions(self) -> list[int]:
        """The given resolutions, the smallest first."""
        return sorted({self.resolution} if isinstance(self.resolution, int) else set(self.resolution or ()))

    @property
    def largest_resolution(self) -> int | None:
        """The largest of the given resolutions; None without any."""
        return max(self.resolutions, default=None)


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Prior preservation: class images (regularization) keep the class from turning into the subject."""

    with_prior_preservation: bool = False
    """Prior preservation: train on class images, too."""
    class_prompt: str | None = None
    """Class: the instance prompt without its trigger word, "a photo of a dog". By default, it follows from the folder's
    name."""
    class_data_dir: Path | None = None
    """Class images (regularization): their folder, or a folder with one such folder for each class; class_images in the
    output folder by default. The base model generates missing images."""
    num_class_images: int = 100
    """Number of class images of each class."""
    prior_loss_weight: float = 1.0
    """Loss weight of the class images."""
    prior_target: Literal["image", "base", "picture"] = "image"
    """Prediction target of class images: image, the noise or velocity of the image as in the paper; or base, the base
    model's prediction, for one more forward pass over them. The latter keeps the model's class instead of that of these
    few images. "picture" is the earlier word for image."""
    sample_batch_size: int = 4
    """Batch size when generating class images."""
