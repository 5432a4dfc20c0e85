"""DreamBooth: a rare word comes to mean a subject, learned from a few pictures (Ruiz et al., arXiv 2208.12242).

    loss = E‖prediction − target‖² on the subject's pictures + λ · the same on pictures of its class,

the second term being prior preservation: it keeps the class's word from turning into the subject.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hra_diffusion.adapter import HRAModel
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.pipelines import adapted_components
from hra_diffusion.training.buckets import bucket_sizes, nearest_size
from hra_diffusion.training.cache import Cache
from hra_diffusion.training.checkpoint import check_writable, find_checkpoint, read_progress, save_adapter
from hra_diffusion.training.class_images import ClassImages
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config_file import to_toml, with_values
from hra_diffusion.training.dataset import file_digest, picture_files, report_duplicates
from hra_diffusion.training.defaults import resolve
from hra_diffusion.training.families import load
from hra_diffusion.training.loop import StepRecord
from hra_diffusion.training.pictures import parse_colour
from hra_diffusion.training.portrait import Portrait, picture_name
from hra_diffusion.training.preflight import check_room
from hra_diffusion.training.recording import Recording
from hra_diffusion.training.same_run import check_same_run, identity
from hra_diffusion.training.setup import DTYPES, add_adapters, make_accelerator, make_trainer
from hra_diffusion.training.sources import SourceMaker
from hra_diffusion.training.subjects import Example, captioned, find_subjects, read_examples
from hra_diffusion.training.trackers import choose_tracker
from hra_diffusion.training.trainer import Trainer

DEFAULT_STEPS = 400


class DreamBooth:
    """A run, from its settings to its results. Making it checks everything and writes nothing.

    >>> run = DreamBooth(config)
    >>> for _ in run.draw_class_images(): ...
    >>> for record in run.steps(): ...
    >>> run.save()
    >>> for _ in run.draw_before_after(): ...

    Attributes:
        config: the settings with everything filled in, as saved to config.toml.
        folder: where the results go: adapter/, config.toml, log.jsonl, before_after.png.
        pipe: the diffusers pipeline, with the adapter in it.
        total_steps: optimiser steps of the run.
        subjects: who is to be learned.
        examples: their pictures, each with its caption.
        sizes: width and height in pixels at which each is trained on.
        class_images: the pictures of each class; empty without prior preservation.
        portrait: the before-and-after pictures.
        resolution: side of the training pictures in pixels.
        resumes_from: the checkpoint that it goes on from, if any.
        tracker: what --report_to means here: tensorboard, wandb, trackio, or None.
    """

    def __init__(self, config: DreamBoothConfig) -> None:
        """Check the settings, read the subject's pictures, load the model and put the adapter in.

        Raises:
            HRAError: something is wrong with the settings, the pictures, the model or the output folder.
        """
        self.subjects = find_subjects(config)
        config = resolve(config, self.subjects)
        self.folder = config.run.output_dir or Path()
        check_writable(self.folder)
        parse_colour(config.data.background_color)
        self.examples = [example for subject in self.subjects for example in read_examples(subject, config.data)]
        report_duplicates([example.photo for example in self.examples])
        if config.data.cache_dir:
            check_writable(config.data.cache_dir, "--cache_dir")
        if config.prior.class_data_dir:
            picture_files(config.prior.class_data_dir)
        self.accelerator = make_accelerator(config.run)
        self.family = load(config.model, DTYPES[config.run.mixed_precision])
        self.pipe = self.family.pipe.to(self.accelerator.device)
        self.resolution = self._checked_resolution(config.data.resolution)
        self.total_steps = self._number_of_steps(config)
        self.config = with_values(config, {"resolution": self.resolution, "max_train_steps": self.total_steps})
        square, step = (self.resolution, self.resolution), self.family.resolution_step
        buckets = bucket_sizes(self.resolution, step) if config.data.aspect_ratio_buckets else [square]
        self.sizes = [nearest_size(example.photo.size, buckets) for example in self.examples]
        add_adapters(self.family, config.adapter, config.model, config.run)
        self.class_images = self._class_images()
        self.portrait = self._portrait()
        self.tracker = choose_tracker(config.run.report_to)
        self._identity = self._make_identity()
        self.resumes_from = self._checkpoint()
        self.check_room()

    @property
    def is_main(self) -> bool:
        """Whether this process shows and writes things; the first of several does."""
        return self.accelerator.is_main_process

    @property
    def components(self) -> dict[str, HRAModel]:
        """The adapted parts of the pipeline, by name."""
        return adapted_components(self.pipe)

    @property
    def steps_before(self) -> int:
        """Steps that are done in the checkpoint that it goes on from."""
        return read_progress(self.resumes_from)[0] if self.resumes_from else 0

    @property
    def pictures_per_step(self) -> int:
        """Pictures that a step learns from, on all devices together."""
        run = self.config.run
        sources = 2 if self.class_images else 1
        return sources * run.train_batch_size * run.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def summary(self) -> str:
        """What will be trained, in one line."""
        count = sum(part.get_nb_trainable_parameters()[0] for part in self.components.values())
        prompts = " and ".join(f'"{subject.prompt}"' for subject in self.subjects)
        shapes = len(set(self.sizes))
        return (
            f"{prompts} from {len(self.examples)} pictures of {self.resolution} px"
            f"{f' in {shapes} shapes' if shapes > 1 else ''}: "
            f"{count:,} parameters in {' and '.join(self.components)}, {self.total_steps} steps"
        )

    def draw_class_images(self) -> Iterator[int]:
        """Draw missing pictures of the class; yields how many there are."""
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            before = 0
            for images in self.class_images:
                for done in images.draw_missing():
                    yield before + done
                before += len(images.files)

    def steps(self) -> Iterator[StepRecord]:
        """Train; every record is in log.jsonl, and its checkpoint saved, when it is yielded."""
        if self.is_main:
            settings = to_toml(with_values(self.config, {"resume_from_checkpoint": None}))
            write_file(self.folder / "config.toml", lambda path: path.write_text(settings, encoding="utf-8"))
        yield from self.recording.steps(self.total_steps)

    @cached_property
    def recording(self) -> Recording:
        """The trainer, ready to go, and what it writes down; making it encodes the pictures."""
        of_class = [
            example
            for images in self.class_images
            for example in captioned(images.read(), images.folder, images.prompt)
        ]
        recording = Recording(
            folder=self.folder,
            trainer=self._trainer(of_class, Cache(self.config.data.cache_dir)),
            components=self.components,
            identity=self._identity,
            config=self.config.run,
        )
        if self.resumes_from:
            recording.go_back(self.resumes_from)
        return recording

    def rehearse(self, steps: int) -> Iterator[StepRecord]:
        """Take some first steps of the run, and then take them back: nothing is written, and nothing changed.

        The subject's pictures stand in for those of the class, which may not be drawn yet.
        """
        weights = self._trained()
        before = [weight.detach().clone() for weight in weights]
        try:
            yield from self._trainer(self.examples, Cache()).steps(steps)
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)

    def _trainer(self, of_class: Sequence[Example], cache: Cache) -> Trainer:
        """Encode the pictures and connect the parts; with a cache, other processes take what the first one made."""
        maker = SourceMaker(
            family=self.family,
            data=self.config.data,
            text_encoder_trains=self.config.adapter.train_text_encoder,
            seed=self.config.run.seed,
            cache=cache,
        )
        with self.accelerator.main_process_first() if cache.folder else nullcontext():
            sources = [maker.make("instance", zip(self.examples, self.sizes, strict=True))]
            if self.class_images:
                in_all_sizes = product(of_class, sorted(set(self.sizes)))
                sources.append(maker.make("class", in_all_sizes, self.config.prior.prior_loss_weight))
        return make_trainer(sources, self.family, self.accelerator, self.config, self.total_steps)

    def check_room(self) -> str:
        """Make sure that the disk has room for the checkpoints; returns a line about it.

        Raises:
            OutputError: it has not.
        """
        run = self.config.run
        return check_room(
            self.folder,
            range(self.steps_before, self.total_steps),
            sum(weight.nbytes for weight in self._trained()),
            every=run.checkpointing_steps,
            limit=run.checkpoints_total_limit,
        )

    def _trained(self) -> list[torch.nn.Parameter]:
        return [weight for part in self.components.values() for weight in part.parameters() if weight.requires_grad]

    def save_checkpoint(self) -> Path:
        """Save a checkpoint of the last step that :meth:`steps` yielded, unless there is one; returns its folder."""
        return self.recording.save()

    def any_process(self, wish: bool) -> bool:
        """Whether any process has this wish; all of them must ask together."""
        if wish:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def save(self) -> Path:
        """Save the adapter; returns its folder. The pipeline then has it as it was saved, and trains no more."""
        folder = self.folder / "adapter"
        self.accelerator.wait_for_everyone()
        self.recording.trainer.show()
        if self.is_main:
            save_adapter(self.components, folder)
        return folder

    def draw_validation(self) -> Iterator[tuple[str, int, Image.Image]]:
        """Draw with the adapter as it is; yields each picture, with its prompt and seed, when its file is there.

        In float32 a picture is, to the bit, what ``hra-diffusion generate`` draws on this device from a checkpoint of
        this step.
        """
        if self.is_main:
            folder = self.folder / "validation" / f"step-{self.recording.trainer.done}"
            with self.recording.trainer.shown(), self.accelerator.autocast():
                for prompt, seed, picture in self.portrait.draw_adapted(self.pipe):
                    write_file(folder / picture_name(prompt, seed), picture.save)
                    yield prompt, seed, picture

    def draw_before_after(self) -> Iterator[int]:
        """Draw before_after.png; yields how many of its pictures are done."""
        if self.is_main:
            with self.recording.trainer.shown(), self.accelerator.autocast():
                yield from self.portrait.draw(self.pipe)
            write_file(self.folder / "before_after.png", self.portrait.sheet().save)

    def _checked_resolution(self, wanted: int | None) -> int:
        step = self.family.resolution_step
        if wanted is not None and wanted % step:
            raise ConfigError(
                f"--resolution is {wanted}, but this model works in steps of {step} pixels: "
                f"use {max(step, wanted // step * step)}."
            )
        return wanted or self.family.resolution

    def _number_of_steps(self, config: DreamBoothConfig) -> int:
        run = config.run
        if run.max_train_steps or not run.num_train_epochs:
            return run.max_train_steps or DEFAULT_STEPS
        a_step = run.train_batch_size * run.gradient_accumulation_steps * self.accelerator.num_processes
        a_pass = sum(example.repeats for example in self.examples)
        return math.ceil(run.num_train_epochs * a_pass / a_step)

    def _make_identity(self) -> dict[str, Any]:
        root = self.config.data.instance_data_dir or Path()
        pictures = {f"instance {example.photo.path.relative_to(root)}": example.digest for example in self.examples}
        for images in self.class_images:
            pictures |= {f"class {images.prompt} {path.name}": file_digest(path) for path in images.own}
        return identity(self.config, pictures, self.pipe, self.accelerator.num_processes)

    def _checkpoint(self) -> Path | None:
        """Find the checkpoint to go on from, and make sure that it is one of this run."""
        wanted = self.config.run.resume_from_checkpoint
        found = find_checkpoint(wanted, self.folder) if wanted else None
        if found:
            check_same_run(found, self._identity, self.total_steps)
        return found

    def _class_images(self) -> list[ClassImages]:
        """Name the pictures of each class, which several subjects may share."""
        prior, preview = self.config.prior, self.config.preview
        if not prior.with_prior_preservation:
            return []
        root = prior.class_data_dir or self.folder / "class_images"
        names: dict[str, str] = {}
        for subject in self.subjects:
            names.setdefault(subject.class_prompt or "", subject.folder.name)
        return [
            ClassImages(
                folder=root / name if len(names) > 1 else root,
                count=prior.num_class_images,
                pipe=self.pipe,
                prompt=prompt,
                resolution=self.resolution,
                steps=preview.num_inference_steps,
                guidance_scale=preview.guidance_scale,
                seed=self.config.run.seed,
                batch_size=prior.sample_batch_size,
            )
            for prompt, name in names.items()
        ]

    def _portrait(self) -> Portrait:
        preview, seed = self.config.preview, self.config.run.seed
        prompts = [
            template.replace("{instance_prompt}", subject.prompt).replace("{class_prompt}", subject.class_prompt or "")
            for template in preview.validation_prompts
            for subject in self.subjects
            if subject.class_prompt or "{class_prompt}" not in template
        ]
        return Portrait(
            prompts=list(dict.fromkeys(prompts)),
            seeds=range(seed, seed + preview.num_validation_images),
            resolution=self.resolution,
            steps=preview.num_inference_steps,
            guidance_scale=preview.guidance_scale,
        )
