"""A run whose parts are ready, whatever it learns: its steps, its checkpoints, and what it leaves in its folder."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from hra_diffusion.adapter import HRAModel
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.run_folder import SHEET
from hra_diffusion.formats.tokens import FOLDER as TOKENS
from hra_diffusion.pipelines import adapted_components, token_embeddings
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.file import to_toml, with_values
from hra_diffusion.training.devices.memory_format import memory_format, set_memory_format
from hra_diffusion.training.devices.offloading import move, offloadable_models, present
from hra_diffusion.training.devices.sharding import gather, gathered
from hra_diffusion.training.dry_run import check_disk_space
from hra_diffusion.training.families import Family
from hra_diffusion.training.families.textual_inversion import TextualInversion
from hra_diffusion.training.loop.optimizers import check_optimizer
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.loop.trainer import Trainer
from hra_diffusion.training.objective.noising import noise_process
from hra_diffusion.training.outputs.checkpoint import Saveable, find_checkpoint, read_progress, save_adapter
from hra_diffusion.training.outputs.recording import VALIDATION, RunRecorder, clear_results, clear_validation
from hra_diffusion.training.outputs.resuming import check_same_run
from hra_diffusion.training.outputs.trackers import choose_tracker
from hra_diffusion.training.outputs.validation import Preview
from hra_diffusion.training.setup import trained_parts


class Run(ABC):
    """A run between its preparation, which each kind of run has its own of, and its results.

    Attributes:
        family: the model, which each kind of run loads first.
        config: the settings with everything filled in, as saved to config.toml.
        accelerator: the devices.
        pipe: the diffusers pipeline, with the adapter in it.
        folder: where the results go: adapter/, config.toml, log.jsonl, before_after.png.
        total_steps: optimizer steps of the run.
        portrait: the before-and-after images.
        resumes_from: the checkpoint that it goes on from, if any.
        tracker: what --report_to means here: tensorboard, wandb, trackio, or None.
    """

    family: Family

    def __init__(
        self,
        *,
        config: TrainingConfig,
        accelerator: Accelerator,
        pipe: Any,
        portrait: Preview,
        identity: Mapping[str, Any],
    ) -> None:
        """Find the checkpoint to go on from, and make sure that the results have room.

        Args:
            config: with output_dir and max_train_steps filled in.
            accelerator: the devices.
            pipe: the pipeline with the adapter in it.
            portrait: what is drawn of it.
            identity: what makes it this run and no other, see :func:`hra_diffusion.training.outputs.resuming.identity`.

        Raises:
            HRAError: the checkpoint is not there or of another run, the tracker or optimizer not installed, the noise
                not the model's, or the disk too full.
        """
        assert config.run.output_dir and config.run.max_train_steps
        self.config, self.accelerator, self.pipe, self.portrait = config, accelerator, pipe, portrait
        self.folder, self.total_steps = config.run.output_dir, config.run.max_train_steps
        self.tracker = choose_tracker(config.run.report_to)
        noise_process(pipe.scheduler, config.objective.flow_shift)
        check_optimizer(config.optimizer)
        self._identity = identity
        self._idle: list[torch.nn.Module] = []
        wanted = config.run.resume_from_checkpoint
        self.resumes_from = find_checkpoint(wanted, self.folder) if wanted else None
        if self.resumes_from:
            check_same_run(self.resumes_from, identity, self.total_steps)
        self.check_disk_space()

    @abstractmethod
    def make_trainer(self, *, rehearsal: bool) -> Trainer:
        """Encode what is learned from, and connect the parts; for a rehearsal without reading or writing a cache."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What will be trained, in one line."""

    @abstractmethod
    def material(self) -> Iterator[tuple[str, str]]:
        """What is learned from, in lines of a label and a text."""

    @property
    def number_of_parameters(self) -> int:
        """How many numbers train."""
        return sum(weight.numel() for weight in self._trained())

    @property
    def images_per_step(self) -> int:
        """Images that a step learns from, on all devices together."""
        run = self.config.run
        return run.train_batch_size * run.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process shows and writes things; the first of several does."""
        return self.accelerator.is_main_process

    @property
    def components(self) -> dict[str, HRAModel]:
        """The adapted parts of the pipeline, by name."""
        return adapted_components(self.pipe)

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        """What something trains in, by name."""
        return trained_parts(self.pipe)

    @property
    def _saved(self) -> dict[str, Saveable]:
        """What is saved, by the name of its folder."""
        return self.components | ({TOKENS: TextualInversion(self.pipe)} if token_embeddings(self.pipe) else {})

    @property
    def initial_global_step(self) -> int:
        """Steps that are done in the checkpoint that it goes on from."""
        return read_progress(self.resumes_from)[0] if self.resumes_from else 0

    @cached_property
    def recording(self) -> RunRecorder:
        """The trainer, ready to go, and what it writes down; making it encodes the images."""
        with memory_format(self.pipe.vae.encoder, torch.channels_last):
            trainer = self.make_trainer(rehearsal=False)
        set_memory_format(self.family.model, torch.channels_last)
        recording = RunRecorder(
            folder=self.folder,
            trainer=trainer,
            components=self._saved,
            identity=self._identity,
            config=self.config.run,
        )
        if self.resumes_from:
            recording.go_back(self.resumes_from)
        self._idle = offloadable_models(self.pipe, recording.trainer.loss)
        move(self._idle, "cpu")
        return recording

    def steps(self) -> Iterator[StepRecord]:
        """Train; every record is in log.jsonl, and its checkpoint saved, when it is yielded."""
        if self.is_main:
            if not self.resumes_from:
                clear_validation(self.folder)
            settings = to_toml(with_values(self.config, {"resume_from_checkpoint": None}))
            write_file(self.folder / "config.toml", lambda path: path.write_text(settings, encoding="utf-8"))
        yield from self.recording.steps(self.total_steps)

    def rehearse(self, steps: int) -> Iterator[StepRecord]:
        """Take some first steps of the run, and then take them back: nothing is written, and nothing changed."""
        weights = self._trained()
        before = [weight.detach().clone() for weight in weights]
        try:
            trainer = self.make_trainer(rehearsal=True)
            with memory_format(self.family.model, torch.channels_last):
                yield from trainer.steps(steps)
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)

    def check_disk_space(self) -> str:
        """Make sure that the disk has room for the checkpoints; returns a line about it.

        Raises:
            OutputError: it has not.
        """
        run = self.config.run
        return check_disk_space(
            self.folder,
            range(self.initial_global_step, self.total_steps),
            sum(weight.nbytes for weight in self._trained()),
            copies=4 + self.config.optimizer.use_ema,  # weights, two means of their gradients, adapter, average
            every=run.checkpointing_steps,
            limit=run.checkpoints_total_limit,
        )

    def _trained(self) -> list[torch.nn.Parameter]:
        return [weight for part in self.parts.values() for weight in part.parameters() if weight.requires_grad]

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
        set_memory_format(self.family.model, torch.contiguous_format)
        move(self._idle, self.accelerator.device)
        self._idle = []
        gather(self.recording.trainer.loss)
        if self.is_main:
            replaces_another = folder.is_dir()
            save_adapter(self._saved, folder)
            if replaces_another:
                clear_results(self.folder)
        return folder

    def end_training(self) -> None:
        """Part from the other processes, for what is left to do needs one only. All must call this."""
        self.accelerator.end_training()

    def draw_validation(self) -> Iterator[tuple[str, int, Image.Image]]:
        """Draw with the adapter as it is; yields each image, with its prompt and seed, when its file is there.

        In float32 an image is, to the bit, what ``hra-diffusion generate`` draws on this device from a checkpoint of
        this step.
        """
        folder = self.folder / VALIDATION / f"step-{self.recording.trainer.done}"
        with gathered(self.recording.trainer.loss):
            if self.is_main:
                with self._shown():
                    for prompt, seed, image in self.portrait.draw_adapted(self.pipe):
                        write_file(folder / image_name(prompt, seed), image.save)
                        yield prompt, seed, image

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Have the whole pipeline on the device within a ``with`` block, with the weights that are to be drawn with."""
        with (
            present(self._idle, self.accelerator.device),
            self.recording.trainer.shown(),
            memory_format(self.family.model, torch.contiguous_format),
            self.accelerator.autocast(),
        ):
            yield

    def draw_before_after(self) -> Iterator[int]:
        """Draw before_after.png; yields how many of its images are done."""
        if self.is_main:
            with self._shown():
                yield from self.portrait.draw(self.pipe)
            write_file(self.folder / SHEET, self.portrait.sheet().save)
