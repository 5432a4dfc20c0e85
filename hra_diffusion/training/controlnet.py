"""ControlNet-style training: the denoiser learns to obey a condition (arXiv 2405.17484, section 5.2).

    loss = E‖prediction(x_t, t, prompt, condition) − target‖²

Reflections in the denoiser and a small condition encoder train together. Prompt, condition or both are dropped at
random, for classifier-free guidance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from hra_diffusion.control import Control, fit, make_annotator, make_encoder
from hra_diffusion.control.annotators import Annotator, Given
from hra_diffusion.control.condition_inputs import condition_input
from hra_diffusion.control.conditions import annotate, read_condition
from hra_diffusion.control.encoder import ConditionEncoder
from hra_diffusion.control.loading import ENCODER, read_encoder
from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats.files import check_writable
from hra_diffusion.formats.images import Color, parse_color
from hra_diffusion.training.config import ControlNetConfig, PairsConfig
from hra_diffusion.training.config.control import CONTROL_TARGETS
from hra_diffusion.training.config.defaults import check_model_named, number_of_steps
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.batches import ConditioningDropout, Source
from hra_diffusion.training.data.buckets import Size, checked_resolution
from hra_diffusion.training.data.dataset import check_output_folders
from hra_diffusion.training.data.inventory import HELD_OUT
from hra_diffusion.training.data.pairs import (
    Pair,
    check_conditions,
    conditions_folder,
    import_dataset,
    make_crop_conditions,
    read_pairs,
)
from hra_diffusion.training.data.report import describe_images
from hra_diffusion.training.data.sources import SourceEncoder
from hra_diffusion.training.families import Family
from hra_diffusion.training.families.controlled_denoiser import CONDITION, CONDITION_KEPT, ControlledDenoiser
from hra_diffusion.training.outputs.control_validation import ControlValidation
from hra_diffusion.training.rng import stream
from hra_diffusion.training.task import ExtraModule


class ControlNet:
    """The task of learning a condition from pairs; see :class:`hra_diffusion.training.task.Task`.

    Attributes:
        pairs: images with captions and conditions.
        annotator: makes conditions of images; `Given` if the conditions are files of an unknown kind.
        encoder: the condition encoder, which trains.
        resolution: side of the training images in pixels.
    """

    annotator: Annotator
    encoder: ConditionEncoder

    def __init__(self, config: ControlNetConfig) -> None:
        self.config = config
        self.pairs: Sequence[Pair] = ()
        self.resolution = 0
        self._root = Path()

    def read_inputs(self, accelerator: Accelerator) -> None:
        """Read the pairs; a dataset of the hub is first written into a folder.

        Raises:
            HRAError: the settings, the pairs or the output folder cannot be used.
        """
        config = self.config
        check_model_named(config.model.pretrained_model_name_or_path)
        if config.adapter.text_encoder_trains:
            raise ConfigError(
                "A control trains the denoiser and its condition encoder, and prompts keep their meaning: leave out "
                "--train_text_encoder and --train_text_encoder_ti."
            )
        parse_color(config.pairs.background_color)
        if config.pairs.cache_dir:
            check_writable(config.pairs.cache_dir, "--cache_dir")
        with accelerator.main_process_first():
            root = self._root = _pairs_folder(config.pairs)
        if config.control.annotator:
            make_annotator(config.control.annotator, config.control.settings)
        self.pairs = read_pairs(root, config.pairs)
        name = config.control.annotator or self._default_annotator
        self.annotator = make_annotator(name, config.control.settings)
        folder = config.run.output_dir or Path("outputs", name)
        check_writable(folder)
        check_output_folders([root, conditions_folder(root)], {"--output_dir": folder})
        self.config = with_values(config, {"output_dir": folder, "annotator": name})
        if self._has_conditions and config.pairs.random_flip and not self.annotator.mirrors:
            raise ConfigError(
                f"--random_flip does not go with conditions of {self.annotator.name} from files, which change with "
                "their mirrored image: leave it out."
            )
        if not self._has_conditions:
            self.annotator.check()
            if isinstance(self.annotator, Given):
                raise ImageError(f"--annotator is given, but {root} holds no conditions: add conditioning_images.")
        check_conditions(self.pairs, self.annotator, config.pairs)

    def plan(self, family: Family, num_processes: int) -> None:
        """Choose the resolution and the number of steps.

        Raises:
            ModelError: the model's denoiser takes no control.
            ConfigError: the model cannot have this resolution.
        """
        condition_input(family.model)
        self.resolution = checked_resolution(self.config.pairs.resolution, family.pipe)
        total_steps = number_of_steps(self.config.run, len(self.pairs), num_processes)
        sizes: dict[str, Any] = {"resolution": self.resolution, "max_train_steps": total_steps}
        settings = family.default_settings(self.config)
        if "target_modules" in settings and family.denoiser_name == "unet":
            settings["target_modules"] = CONTROL_TARGETS
        self.config = with_values(self.config, sizes | settings)

    def add_modules(self, family: Family) -> None:
        """Make the condition encoder, or read that of the control to start from.

        Raises:
            AdapterFileError: --init_adapter is no control.
            ConfigError: its encoder is for other conditions or another model.
        """
        generator = stream(self.config.run.seed, f"start of {ENCODER}")
        self.encoder = make_encoder(family.pipe, self.annotator, generator)
        if source := self.config.adapter.init_adapter:
            start = read_encoder(source)
            if differing := [key for key, value in self.encoder.config.items() if start.config[key] != value]:
                raise ConfigError(
                    f"The condition encoder of --init_adapter {source} is for other conditions or another model: its "
                    f"{', '.join(differing)} differ from this run's."
                )
            self.encoder.load_state_dict(start.state_dict())

    @property
    def extra_modules(self) -> dict[str, ExtraModule]:
        """The condition encoder."""
        return {ENCODER: ExtraModule(module=self.encoder, learning_rate=self.config.control.encoder_lr)}

    def digests(self) -> dict[str, str]:
        """Digest each pair, by name."""
        return {f"pair {pair.example.photo.path.relative_to(self._root)}": pair.digest for pair in self.pairs}

    @property
    def control(self) -> Control:
        """The condition encoder with the adapter of the run's pipeline."""
        return Control(encoder=self.encoder, adapter_name="default")

    def validation(self) -> ControlValidation:
        """Return the images to generate: from the conditions of --validation_image, or from pairs.

        Raises:
            ImageError: the folder of --validation_data_dir is missing.
        """
        config, annotator, size = self.config, self.annotator, self._size
        validation = partial(
            ControlValidation,
            control=self.control,
            seed=config.run.seed,
            options=config.validation.options(self.resolution),
        )
        count = config.validation.num_validation_images
        if config.validation.given:
            given = [pair for pair in config.validation.given for _ in range(count)]
            return validation(
                prompts=[prompt for prompt, _ in given],
                conditions=[fit(read_condition(path, annotator), size, annotator.labels) for _, path in given],
            )
        background = parse_color(config.pairs.background_color)
        folder = config.pairs.validation_data_dir or self._root / HELD_OUT
        if config.pairs.validation_data_dir and not folder.is_dir():
            raise ImageError(f"There is no folder of pairs {folder}: correct --validation_data_dir.")
        settings = with_values(config, {"max_train_samples": count}).pairs
        pairs = read_pairs(folder, settings) if folder.is_dir() else self.pairs[:count]
        return validation(
            prompts=[pair.example.caption for pair in pairs],
            conditions=[make_condition(pair, annotator, size, background) for pair in pairs],
            real=[fit(pair.example.photo.decode(background), size) for pair in pairs],
        )

    @property
    def summary(self) -> str:
        """The annotator and the number of pairs in one line."""
        conditions = "from files" if self._has_conditions else "annotated"
        return f"{self.annotator.name} ({conditions}) from {len(self.pairs)} pairs of {self.resolution} px"

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Describe annotator and images, in lines of a label and a text."""
        yield "condition", f"{self.annotator}"
        examples = [pair.example for pair in self.pairs]
        for line in describe_images(examples, [self._size] * len(examples), self.config.pairs.center_crop):
            yield "image", line

    @property
    def images_per_example(self) -> int:
        """1: the image of a pair."""
        return 1

    @property
    def num_class_images(self) -> int:
        """None: a control has no class."""
        return 0

    def generate_class_images(self) -> Iterator[int]:
        """Generate nothing: a control has no class."""
        return iter(())

    @property
    def image_settings(self) -> PairsConfig:
        """Settings of crops, colors and the cache."""
        return self.config.pairs

    def sources(self, source_encoder: SourceEncoder) -> list[Source]:
        """Encode the pairs, with the conditions of each crop and the values for dropped prompts and conditions."""
        settings, pairs = self.config.control, self.config.pairs
        source = source_encoder.encode("pairs", [(pair.example, self._size) for pair in self.pairs])
        conditions = [
            make_crop_conditions(pair, self._size, self.annotator, pairs, source_encoder.seed) for pair in self.pairs
        ]
        (no_prompt,) = source_encoder.encode_captions([""])
        no_condition = {CONDITION_KEPT: torch.zeros(1)}
        source = replace(
            source,
            conditions={**source.conditions, CONDITION_KEPT: torch.ones(len(self.pairs))},
            crop_conditions={**source.crop_conditions, CONDITION: conditions},
            dropouts=(
                ConditioningDropout(share=settings.proportion_empty_prompts, values=no_prompt),
                ConditioningDropout(share=settings.proportion_empty_conditions, values=no_condition),
                ConditioningDropout(share=settings.proportion_empty_both, values=no_prompt | no_condition),
            ),
        )
        return [source]

    def denoiser(self, family: Family) -> nn.Module:
        """Return the denoiser with the condition encoder before it."""
        return ControlledDenoiser(family.denoiser(text_encoder_trains=False), family.pipe, self.encoder)

    @property
    def _size(self) -> Size:
        return self.resolution, self.resolution

    @property
    def _default_annotator(self) -> str:
        """Given conditions are of an unknown kind, unless there are settings of their annotator."""
        return "given" if self._has_conditions and not self.config.control.settings else "canny"

    @property
    def _has_conditions(self) -> bool:
        return any(pair.condition for pair in self.pairs)


def make_condition(pair: Pair, annotator: Annotator, size: Size, background: Color) -> Image.Image:
    """Return the condition of a pair's whole image, annotated or from its file: RGB, of a size in pixels."""
    image = pair.read_condition_or_image(annotator, background)
    if pair.condition:
        return fit(image, size, annotator.labels)
    return annotate(pair.example.photo.path, annotator, fit(image, size))


def _pairs_folder(settings: PairsConfig) -> Path:
    """Return the folder of the pairs; a dataset of the hub is written into one first.

    Raises:
        ConfigError: neither or both of them are given.
    """
    if (settings.train_data_dir is None) == (settings.dataset_name is None):
        raise ConfigError("Name the pairs with either --train_data_dir, a folder, or --dataset_name.")
    if settings.train_data_dir:
        return settings.train_data_dir
    return import_dataset(settings, settings.cache_dir or Path("outputs", "datasets"))
