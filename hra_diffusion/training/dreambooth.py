"""DreamBooth: a rare word becomes the name of a subject, from a few images (Ruiz et al., arXiv 2208.12242).

    loss = E‖prediction − target‖² on the subject's images + λ · the same on images of its class

The second term is prior preservation: the class noun keeps its meaning.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from hra_diffusion.formats.files import check_writable
from hra_diffusion.formats.images import parse_color
from hra_diffusion.pipelines.components import tokenizer_of
from hra_diffusion.pipelines.kinds import size_multiple
from hra_diffusion.training.config import DataConfig, DreamBoothConfig
from hra_diffusion.training.config.defaults import number_of_steps, resolve
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.batches import Source
from hra_diffusion.training.data.buckets import Size, checked_resolution, sizes_for
from hra_diffusion.training.data.caption_orders import caption_orders
from hra_diffusion.training.data.class_images import ClassImages, find_class_images
from hra_diffusion.training.data.dataset import check_output_folders, file_digest, report_duplicates
from hra_diffusion.training.data.held_out import held_out_examples, split_examples
from hra_diffusion.training.data.report import describe_class_images, describe_images
from hra_diffusion.training.data.sources import SourceEncoder
from hra_diffusion.training.data.subjects import (
    Example,
    Subject,
    captioned_examples,
    find_subjects,
    read_examples,
    report_unused_files,
    subject_folders,
)
from hra_diffusion.training.data.trigger_words import report_trigger_words
from hra_diffusion.training.families import Family
from hra_diffusion.training.families.textual_inversion import add_textual_inversion
from hra_diffusion.training.outputs.validation import SubjectValidation, subject_validation
from hra_diffusion.training.task import ExtraModule

logger = logging.getLogger(__name__)

VALIDATE_EVERY = 25
"""Default number of steps from one validation loss to the next."""


class DreamBooth:
    """The task of learning subjects from images; see :class:`hra_diffusion.training.task.Task`.

    Attributes:
        subjects: the subjects to learn.
        examples: their images, each with its caption.
        held_out: images for the validation loss.
        sizes: width and height in pixels of each training image, in each resolution.
        class_images: the images of each class; empty without prior preservation.
        resolution: side of the training images in pixels, the largest of several.
    """

    def __init__(self, config: DreamBoothConfig) -> None:
        self.config = config
        self.subjects: Sequence[Subject] = ()
        self.examples: Sequence[Example] = ()
        self.held_out: Sequence[Example] = ()
        self.sizes: Sequence[Size] = ()
        self.class_images: Sequence[ClassImages] = ()
        self.resolution = 0

    def read_inputs(self, accelerator: Accelerator) -> None:
        """Find the subjects, and read their images and captions.

        Raises:
            HRAError: the settings, the images or the output folder cannot be used.
        """
        self.subjects = find_subjects(self.config)
        self.config = config = resolve(self.config, self.subjects)
        folder, class_folder = config.run.output_dir or Path(), config.prior.class_data_dir
        check_writable(folder)
        root = config.data.instance_data_dir or Path()
        written = {"--output_dir": folder}
        if class_folder and config.prior.with_prior_preservation:
            written["--class_data_dir"] = class_folder
        check_output_folders([root, *subject_folders(root)], written)
        parse_color(config.data.background_color)
        self._read_examples(root)
        report_unused_files(config, [*self.examples, *self.held_out])
        report_duplicates([example.photo for example in (*self.examples, *self.held_out)])
        if config.data.cache_dir:
            check_writable(config.data.cache_dir, "--cache_dir")
        if config.prior.with_prior_preservation and class_folder and not class_folder.is_dir():
            check_writable(class_folder, "--class_data_dir")
            logger.warning("The folder %s does not exist: class images will be generated into it.", class_folder)

    def _read_examples(self, root: Path) -> None:
        """Read the images of the subjects to train on, and the held-out ones."""
        data, seed = self.config.data, self.config.run.seed
        read = (read_examples(subject, data) for subject in self.subjects)
        splits = [split_examples(examples, data.validation_split, seed) for examples in read]
        self.examples = [example for kept, _ in splits for example in kept]
        self.held_out = [example for _, held_out in splits for example in held_out]
        if self.held_out and not self.config.validation.validate_every_n_steps:
            self.config = with_values(self.config, {"validate_every_n_steps": VALIDATE_EVERY})
        elif self.config.validation.validate_every_n_steps and not self.held_out:
            self.held_out = held_out_examples(self.subjects, root, data)
        orders = (caption_orders(example.caption, data, seed) for example in self.examples)
        if data.shuffle_caption and all(len(texts) == 1 for texts in orders):
            logger.warning(
                "--shuffle_caption has no effect: no caption has two tags with %r between them after the first %d.",
                data.caption_separator,
                data.keep_tokens,
            )

    def plan(self, family: Family, num_processes: int) -> None:
        """Choose the resolution, the number of steps, a size for each image, and the family's default settings.

        Raises:
            ConfigError: the model cannot have this resolution or these settings.
        """
        config, pipe = self.config, family.pipe
        resolutions = [checked_resolution(wanted, pipe) for wanted in config.data.resolutions or (None,)]
        self.resolution = max(resolutions)
        examples_per_epoch = sum(example.repeats for example in self.examples) * len(resolutions)
        total_steps = number_of_steps(config.run, examples_per_epoch, num_processes)
        resolution = tuple(resolutions) if len(resolutions) > 1 else self.resolution
        sizes: dict[str, Any] = {"resolution": resolution, "max_train_steps": total_steps}
        self.config = with_values(config, sizes | family.default_settings(config))
        self.sizes = [size for side in resolutions for size in self._sizes_of(self.examples, family, side)]

    def add_modules(self, family: Family) -> None:
        """Add token embeddings (textual inversion), and choose the class images of the adapted pipeline.

        Raises:
            HRAError: a placeholder token, or the folder of the class images, cannot be used.
        """
        tokenizers = [tokenizer_of(family.pipe, name) for name in family.text_encoder_names]
        report_trigger_words(self.subjects, self.examples, tokenizers)
        captions = dict.fromkeys(example.caption for example in self.examples)
        if self.config.adapter.train_text_encoder_ti:
            prompts = [subject.prompt for subject in self.subjects]
            add_textual_inversion(family, prompts, set(captions), self.config.adapter)
        for caption in captions:
            if truncated := family.truncated_text(caption):
                logger.warning('The caption "%s" is too long for the model, which ignores "%s".', caption, truncated)
        folder = self.config.run.output_dir or Path()
        self.class_images = find_class_images(self.config, self.subjects, folder, family.pipe)
        for images in self.class_images:
            if not all(path.exists() for path in images.files):
                check_writable(images.folder, "--class_data_dir")

    @property
    def extra_modules(self) -> dict[str, ExtraModule]:
        """None: adapters and token embeddings are in the pipeline."""
        return {}

    def digests(self) -> dict[str, str]:
        """Digest each training image with its caption, by name."""
        root = self.config.data.instance_data_dir or Path()
        digests = {f"instance {example.photo.path.relative_to(root)}": example.digest for example in self.examples}
        for images in self.class_images:
            captions = images.captions
            for path in images.user_files:
                name = path.name if path.parent == images.folder else f"{path.parent.name}/{path.name}"
                digests[f"class {images.prompt} {name}"] = file_digest(path) + captions.get(path, images.prompt)
            digests[f"class {images.prompt}"] = str(images.count)
        return digests

    def validation(self) -> SubjectValidation:
        """Return the images to generate: prompts of the subjects, with and without the adapter."""
        return subject_validation(self.subjects, self.config.validation, self.resolution, self.config.run.seed)

    @property
    def summary(self) -> str:
        """The prompts and the number of images in one line."""
        prompts = " and ".join(f'"{subject.prompt}"' for subject in self.subjects)
        resolutions = self.config.data.resolutions or [self.resolution]
        shapes = len(set(self.sizes))
        buckets = f" in {shapes} shapes" if shapes > len(resolutions) else ""
        return f"{prompts} from {len(self.examples)} images of {' and '.join(map(str, resolutions))} px{buckets}"

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Describe subjects, images and class images, in lines of a label and a text."""
        yield "subjects", " and ".join(f'"{subject.prompt}"' for subject in self.subjects)
        examples = [example for example, _ in self._sized_examples]
        for line in describe_images(examples, self.sizes, self.config.data.center_crop):
            yield "image", line
        for images in self.class_images:
            yield "class", describe_class_images(images)

    @property
    def images_per_example(self) -> int:
        """2 with prior preservation: an image of the subject and one of its class."""
        return 2 if self.class_images else 1

    @property
    def num_class_images(self) -> int:
        """Class images of all classes, generated ones included."""
        return sum(len(images.files) for images in self.class_images)

    def generate_class_images(self) -> Iterator[int]:
        """Generate missing class images; yields the number of images so far."""
        before = 0
        for images in self.class_images:
            for count in images.generate_missing():
                yield before + count
            before += len(images.files)

    @property
    def image_settings(self) -> DataConfig:
        """Settings of crops, colors and the cache."""
        return self.config.data

    def sources(self, source_encoder: SourceEncoder) -> list[Source]:
        """Encode the images of the subjects and of their classes, the latter in every size of the former."""
        sources = [source_encoder.encode("instance", self._sized_examples)]
        if self.class_images:
            examples = product(self._class_examples(), sorted(set(self.sizes)))
            prior = self.config.prior
            prior_prediction = prior.prior_target == "base"
            sources.append(source_encoder.encode("class", examples, prior.prior_loss_weight, prior_prediction))
        if self.held_out:
            every = self.config.validation.validate_every_n_steps
            sizes = self._sizes_of(self.held_out, source_encoder.family, self.resolution)
            held_out = zip(self.held_out, sizes, strict=True)
            sources.append(source_encoder.encode("validation", held_out, validate_every=every))
        return sources

    @property
    def _sized_examples(self) -> list[tuple[Example, Size]]:
        """The images to train on, in each resolution, with their sizes."""
        return list(zip(cycle(self.examples), self.sizes, strict=False))

    def _sizes_of(self, examples: Sequence[Example], family: Family, resolution: int) -> list[Size]:
        """Return the training size of each image in a resolution."""
        photos = [example.photo.size for example in examples]
        return sizes_for(photos, resolution, size_multiple(family.pipe), self.config.data.aspect_ratio_buckets)

    def denoiser(self, family: Family) -> nn.Module:
        """Return the denoiser; it encodes the prompts of each batch if a text encoder trains."""
        return family.denoiser(self.config.adapter.text_encoder_trains)

    def _class_examples(self) -> list[Example]:
        """Return the class images with captions, or the subjects' images in a dry run without class images."""
        if not all(path.exists() for images in self.class_images for path in images.files):
            return list(self.examples)
        return [
            example
            for images in self.class_images
            for example in captioned_examples(images.read_photos(), images.captions, images.prompt)
        ]
