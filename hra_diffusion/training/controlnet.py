"""ControlNet-style training: an image is learned from its prompt and its condition (arXiv 2405.17484, section 5.2).

    loss = E‖prediction(x_t, t, prompt, condition) − target‖²

over reflections in the UNet and a small encoder of the condition; now and then the prompt, the condition or both are
left out, so that guidance has something to guide away from.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hra_diffusion.control import Control, encoder_for, fit, make_annotator
from hra_diffusion.control.annotators import Annotator, Given
from hra_diffusion.control.conditions import annotate, read_condition
from hra_diffusion.control.loading import ENCODER
from hra_diffusion.errors import ConfigError, ImageError, ModelError
from hra_diffusion.formats.files import check_writable
from hra_diffusion.formats.images import Color, parse_color
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.defaults import check_model_named, number_of_steps
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.batches import ConditioningDropout, Source
from hra_diffusion.training.data.buckets import checked_resolution
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.data.dataset import HELD_OUT, check_apart
from hra_diffusion.training.data.pairs import (
    CONDITIONS_FOLDER,
    Pair,
    check_conditions,
    conditions_of,
    import_dataset,
    read_pairs,
)
from hra_diffusion.training.data.sources import SourceMaker
from hra_diffusion.training.dry_run import describe_images
from hra_diffusion.training.families import load
from hra_diffusion.training.loop.trainer import Trainer, trained_count
from hra_diffusion.training.objective.controlled_denoiser import CONDITIONS, KEPT
from hra_diffusion.training.outputs.control_validation import ControlValidation
from hra_diffusion.training.outputs.resuming import identity
from hra_diffusion.training.rng import stream
from hra_diffusion.training.run import Run
from hra_diffusion.training.setup import PRECISIONS, add_adapters, make_accelerator, make_trainer


class ControlNet(Run):
    """A run, from its settings to its results. Making it checks everything and writes nothing but an imported dataset.

    >>> run = ControlNet(config)
    >>> for record in run.steps(): ...
    >>> run.save()
    >>> for _ in run.draw_before_after(): ...

    Attributes:
        family: the model.
        pairs: what is learned from.
        annotator: what makes conditions.
        encoder: what reads them; it trains.
        resolution: side of the training images in pixels.
    """

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        """Check the settings and the pairs, load the model, put the adapter in and make the encoder.

        Raises:
            HRAError: something is wrong with the settings, the pairs, the model or the output folder.
        """
        check_model_named(config.model.pretrained_model_name_or_path)
        if config.adapter.text_encoder_trains:
            raise ConfigError(
                "A control learns in the UNet and its condition encoder, and prompts keep their meaning: leave out "
                "--train_text_encoder and --train_text_encoder_ti."
            )
        self.annotator = make_annotator(config.control.annotator, config.control.settings)
        parse_color(config.pairs.background_color)
        if config.pairs.cache_dir:
            check_writable(config.pairs.cache_dir, "--cache_dir")
        accelerator = make_accelerator(config.run)
        with accelerator.main_process_first():
            root = _folder(config)
        folder = config.run.output_dir or Path("outputs", config.control.annotator)
        check_writable(folder)
        check_apart([root, root / CONDITIONS_FOLDER], {"--output_dir": folder})
        self.pairs = read_pairs(root, config.pairs)
        given = any(pair.condition for pair in self.pairs)
        if given and config.pairs.random_flip and not self.annotator.mirrors:
            raise ConfigError(
                f"--random_flip does not go with given conditions of {self.annotator.name}, which are others once "
                "their image is mirrored: leave it out."
            )
        if not given:
            self.annotator.check()
            if isinstance(self.annotator, Given):
                raise ImageError(f"--annotator is given, but {root} holds no conditions: add conditioning_images.")
        check_conditions(self.pairs, self.annotator, config.pairs)
        self.family = load(config.model, PRECISIONS[config.run.mixed_precision])
        if self.family.denoiser_name != "unet":
            raise ModelError("Control is for models with a UNet (Stable Diffusion 1, 2, XL): use one of them.")
        pipe = self.family.pipe.to(accelerator.device)
        self.resolution = checked_resolution(config.pairs.resolution, pipe)
        total_steps = number_of_steps(config.run, len(self.pairs), accelerator.num_processes)
        values = {"resolution": self.resolution, "max_train_steps": total_steps, "output_dir": folder}
        config = with_values(config, values)
        add_adapters(self.family, config.adapter, config.model, config.run)
        self.encoder = encoder_for(pipe, self.annotator, stream(config.run.seed, f"start of {ENCODER}"))
        self.encoder.to(accelerator.device)
        digests = {f"pair {pair.example.photo.path.relative_to(root)}": pair.digest for pair in self.pairs}
        super().__init__(
            config=config,
            accelerator=accelerator,
            pipe=pipe,
            portrait=self._sheet(root, config),
            identity=identity(config, digests, pipe, accelerator.num_processes),
        )

    @property
    def components(self) -> dict[str, Any]:
        """What trains, by name: adapted parts of the pipeline, and the encoder."""
        return super().components | {ENCODER: self.encoder}

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        """See :class:`Run`."""
        return super().parts | {ENCODER: self.encoder}

    @property
    def control(self) -> Control:
        """What is learned, as it guides the run's pipeline."""
        return Control(encoder=self.encoder, adapter_name="default")

    @property
    def summary(self) -> str:
        """What will be trained, in one line."""
        counts = {name: trained_count(part) for name, part in self.components.items()}
        made = "given" if any(pair.condition for pair in self.pairs) else "made"
        return (
            f"{self.annotator.name} ({made}) from {len(self.pairs)} pairs of {self.resolution} px: "
            f"{' and '.join(f'{count:,} parameters in {name}' for name, count in counts.items())}, "
            f"{self.total_steps} steps"
        )

    def material(self) -> Iterator[tuple[str, str]]:
        """See :class:`Run`."""
        yield "condition", f"{self.annotator}"
        examples = [pair.example for pair in self.pairs]
        for line in describe_images(examples, [self._size] * len(examples), self.config.pairs.center_crop):
            yield "image", line

    def make_trainer(self, *, rehearsal: bool) -> Trainer:
        """Encode images and captions, make the conditions, and connect the parts."""
        cache = Cache(None if rehearsal else self.config.pairs.cache_dir)
        maker = SourceMaker(
            family=self.family,
            data=self.config.pairs,
            text_encoder_trains=False,
            seed=self.config.run.seed,
            cache=cache,
        )
        with self.accelerator.main_process_first() if cache.folder else nullcontext():
            source = self._source(maker)
        rate = self.config.control.encoder_lr
        return make_trainer(
            [source], self.family, self.accelerator, self.config, self.total_steps, self.encoder, encoder_lr=rate
        )

    @property
    def _size(self) -> tuple[int, int]:
        return self.resolution, self.resolution

    def _source(self, maker: SourceMaker) -> Source:
        """Add conditions to what the maker makes, and what stands for those that are left out."""
        config = self.config.control
        source = maker.make("pairs", [(pair.example, self._size) for pair in self.pairs])
        made = [conditions_of(pair, self._size, self.annotator, self.config.pairs, maker.seed) for pair in self.pairs]
        no_prompt = self.family.condition([""], text_encoder_trains=False)
        no_condition = {KEPT: torch.zeros(1)}
        return replace(
            source,
            conditions={**source.conditions, KEPT: torch.ones(len(self.pairs))},
            of_crops={**source.of_crops, CONDITIONS: made},
            blanks=(
                ConditioningDropout(share=config.proportion_empty_prompts, values=no_prompt),
                ConditioningDropout(share=config.proportion_empty_conditions, values=no_condition),
                ConditioningDropout(share=config.proportion_empty_both, values=no_prompt | no_condition),
            ),
        )

    def _sheet(self, root: Path, config: ControlNetConfig) -> ControlValidation:
        """Choose what is drawn: conditions that were given, or pairs."""
        validation, annotator, size = config.validation, self.annotator, self._size
        sheet = partial(
            ControlValidation,
            control=self.control,
            seed=config.run.seed,
            options=validation.options(self.resolution),
        )
        if validation.given:
            told = [each for each in validation.given for _ in range(validation.num_validation_images)]
            return sheet(
                prompts=[prompt for prompt, _ in told],
                conditions=[fit(read_condition(path, annotator), size, annotator.labels) for _, path in told],
            )
        background = parse_color(config.pairs.background_color)
        folder = config.pairs.validation_data_dir or root / HELD_OUT
        if config.pairs.validation_data_dir and not folder.is_dir():
            raise ImageError(f"There is no folder of pairs {folder}: correct --validation_data_dir.")
        few = with_values(config, {"max_train_samples": validation.num_validation_images}).pairs
        pairs = read_pairs(folder, few) if folder.is_dir() else self.pairs[: validation.num_validation_images]
        return sheet(
            prompts=[pair.example.caption for pair in pairs],
            conditions=[condition_of(pair, annotator, size, background) for pair in pairs],
            real=[fit(pair.example.photo.read(background), size) for pair in pairs],
        )


def condition_of(pair: Pair, annotator: Annotator, size: tuple[int, int], background: Color) -> Image.Image:
    """Make the condition of a pair's image as a whole, or take the one it has: RGB, of a size."""
    whole = pair.whole_condition(annotator, background)
    if pair.condition:
        return fit(whole, size, annotator.labels)
    return annotate(pair.example.photo.path, annotator, fit(whole, size))


def _folder(config: ControlNetConfig) -> Path:
    """Return the folder of the pairs, where a dataset is written to first."""
    pairs = config.pairs
    if (pairs.train_data_dir is None) == (pairs.dataset_name is None):
        raise ConfigError("Say where the pairs are: --train_data_dir, a folder, or else --dataset_name.")
    if pairs.train_data_dir:
        return pairs.train_data_dir
    return import_dataset(pairs, pairs.cache_dir or Path("outputs", "datasets"))
