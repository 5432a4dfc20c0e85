"""A training run: a plan, a task and a loaded model; its steps, checkpoints and results.

>>> run = prepare_run(DreamBooth(config))  # checks everything and loads the model; writes nothing
>>> for record in run.steps(): ...
>>> run.save()
>>> for _ in run.generate_before_after(): ...
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from hra_diffusion.formats.chains import SLOT
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.peft import save_adapter as save_adapter_of
from hra_diffusion.formats.run_folder import SHEET
from hra_diffusion.formats.tokens import FOLDER as TOKENS
from hra_diffusion.householder.subspaces import Subspace
from hra_diffusion.out_of_memory import explain_out_of_memory
from hra_diffusion.pipelines import adapted_components, token_embeddings
from hra_diffusion.pipelines.components import base_files_of
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.base import with_recorded_paths
from hra_diffusion.training.config.file import to_toml, with_values
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.data.sources import SourceEncoder
from hra_diffusion.training.devices.memory_flags import flags_for_generating, flags_for_training
from hra_diffusion.training.devices.memory_format import memory_format, set_memory_format
from hra_diffusion.training.devices.offloading import finish_training, ready_to_generate
from hra_diffusion.training.devices.sharding import unshard, unsharded
from hra_diffusion.training.families import Family
from hra_diffusion.training.families.textual_inversion import save_tokens
from hra_diffusion.training.loop.gradient_start import start_from_gradient
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.loop.trainer import Trainer, trained_count
from hra_diffusion.training.outputs.checkpoint import Save, save_adapter
from hra_diffusion.training.outputs.disk_space import check_disk_space
from hra_diffusion.training.outputs.lock import locked
from hra_diffusion.training.outputs.recording import VALIDATION, RunRecorder, clear_results, clear_validation
from hra_diffusion.training.outputs.validation import Validation
from hra_diffusion.training.setup import build_trainer, trained_components
from hra_diffusion.training.task import Plan, Task


@dataclass(kw_only=True)
class Run:
    """A prepared run; see :func:`hra_diffusion.training.setup.prepare_run`."""

    plan: Plan
    task: Task
    family: Family
    """The model family, with the pipeline that has the adapter in it."""
    accelerator: Accelerator
    validation: Validation
    """Images to generate during and after training."""
    subspaces: Mapping[nn.Parameter, Subspace] = field(default_factory=dict[nn.Parameter, Subspace])
    """The subspaces that trained columns stay within: see :mod:`hra_diffusion.training.loop.subspaces`."""
    _recorder: RunRecorder | None = None
    _has_ended: bool = False
    """Whether the pipeline has the weights to generate with, for good."""

    @property
    def config(self) -> TrainingConfig:
        """The complete settings, as saved to config.toml."""
        return self.plan.config

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.plan.folder

    @property
    def pipe(self) -> Pipeline:
        """The diffusers pipeline."""
        return self.family.pipe

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes: the first of several does."""
        return self.accelerator.is_main_process

    @property
    def trained_modules(self) -> dict[str, nn.Module]:
        """The modules with trained parameters, by name."""
        return trained_components(self.pipe) | _extra_modules(self.task)

    @property
    def saved_modules(self) -> dict[str, Save]:
        """How to write each module of the adapter, by the name of its folder."""
        slot = self.config.adapter.slot
        save_component = partial(save_adapter_of, metadata={SLOT: slot} if slot else {})
        adapters = {name: partial(save_component, model) for name, model in adapted_components(self.pipe).items()}
        extra = {name: module.save_pretrained for name, module in _extra_modules(self.task).items()}
        tokens = {TOKENS: partial(save_tokens, self.pipe)} if token_embeddings(self.pipe) else {}
        return {**adapters, **extra, **tokens}

    @property
    def images_per_step(self) -> int:
        """Images in a step, on all devices together."""
        run = self.config.run
        examples = run.train_batch_size * run.gradient_accumulation_steps * self.accelerator.num_processes
        return examples * self.task.images_per_example

    @property
    def summary(self) -> str:
        """The inputs, trained parameters and steps in one line."""
        counts = {name: trained_count(module) for name, module in self.trained_modules.items()}
        parameters = " and ".join(f"{count:,} parameters in {name}" for name, count in counts.items())
        return f"{self.task.summary}: {parameters}, {self.plan.total_steps} steps"

    def check_disk_space(self) -> str:
        """Check the disk space for the checkpoints, and describe it in a line.

        Raises:
            OutputError: the disk has too little space.
        """
        run = self.config.run
        return check_disk_space(
            self.plan.folder,
            range(self.plan.initial_global_step, self.plan.total_steps),
            sum(weight.nbytes for weight in self._trained_parameters()),
            copies=4 + self.config.optimizer.use_ema,  # weights, two moments of their gradients, adapter, EMA
            every=run.checkpointing_steps,
            limit=run.checkpoints_total_limit,
        )

    def generate_class_images(self) -> Iterator[int]:
        """Generate missing class images; yields the number of images so far."""
        with (
            self._explained("generating class images", flags_for_generating),
            self.accelerator.main_process_first(),
            ready_to_generate(self.pipe, self.accelerator),
            self.accelerator.autocast(),
        ):
            yield from self.task.generate_class_images()

    def start(self) -> RunRecorder:
        """Encode the images, build the trainer, load the checkpoint to resume from; returns the trainer's recorder.

        Class images that are missing are generated first.

        Raises:
            AdapterFileError: the checkpoint is damaged.
        """
        if self._recorder:
            return self._recorder
        for _ in self.generate_class_images():
            pass
        with (
            self._explained("encoding the images", flags_for_generating),
            memory_format(self.pipe.vae.encoder, torch.channels_last),
        ):
            trainer = self.build_trainer(Cache(self.task.image_settings.cache_dir))
        set_memory_format(self.family.model, torch.channels_last)
        self._recorder = RunRecorder(
            folder=self.plan.folder,
            trainer=trainer,
            components=self.saved_modules,
            adapter_files=_base_record(self),
            fingerprint=self.plan.fingerprint,
            config=self.config.run,
        )
        if self.plan.checkpoint:
            self._recorder.resume(self.plan.checkpoint)
        elif self.config.adapter.init_weights == "gradient":
            with self._explained("starting from the gradient", flags_for_training):
                start_from_gradient(trainer, list(adapted_components(self.pipe).values()), self.config.run.seed)
        return self._recorder

    def steps(self, report: Callable[[StepRecord], object] | None = None) -> Iterator[StepRecord]:
        """Train; yields each step's record after the step is in log.jsonl and its checkpoint saved.

        On a GPU the numbers of a step are known, and in log.jsonl, after the next one. To use them earlier waits for
        the GPU, which is idle until the next step.

        Args:
            report: called with each step's record once its numbers are known, in the main process.

        Raises:
            OutputError: another process is at work in the folder, the folder cannot be written, or is gone.
            DivergedError: a number is not finite.
        """
        with locked(self.plan.folder) if self.is_main else nullcontext():
            if self.is_main:
                if not self.plan.checkpoint:
                    clear_validation(self.plan.folder)
                settings = recorded_settings(self.config)
                write_file(self.plan.folder / "config.toml", lambda path: path.write_text(settings, encoding="utf-8"))
            recorder = self.start()
            with self._explained("training", flags_for_training):
                yield from recorder.steps(self.plan.total_steps, report)

    def save_checkpoint(self) -> Path:
        """Save a checkpoint of the last step, if there is none, and return its folder."""
        return self.start().save()

    def save(self) -> Path:
        """Save the adapter and return its folder. The pipeline keeps the saved weights; training has ended.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
            OutputError: the folder cannot be written.
        """
        folder = self.plan.folder / "adapter"
        self.accelerator.wait_for_everyone()
        trainer = self.start().trainer
        self.start().check_finite()
        trainer.copy_inference_weights()
        set_memory_format(self.family.model, torch.contiguous_format)
        finish_training(self.pipe, self.accelerator, [trainer.loss])
        self._has_ended = True
        unshard(trainer.loss)
        if self.is_main:
            self.start().check_folder()
            replaces_another = folder.is_dir()
            save_adapter(self.saved_modules, folder, _base_record(self))
            if replaces_another:
                clear_results(self.plan.folder)
        return folder

    def generate_validation(self) -> Iterator[tuple[str, int, Image.Image]]:
        """Generate the validation images; yields prompt, seed and image after each file is written.

        In float32 an image equals, bit for bit, the output of ``hra-diffusion generate`` on this device from a
        checkpoint of this step.

        Raises:
            DivergedError: a number of the last step or a weight is not finite.
        """
        trainer = self.start().trainer
        self.start().check_finite()
        folder = self.plan.folder / VALIDATION / f"step-{trainer.global_step}"
        with unsharded(trainer.loss):
            if self.is_main:
                with self._inference():
                    for prompt, seed, image in self.validation.generate_adapted(self.pipe):
                        write_file(folder / image_name(prompt, seed), image.save)
                        yield prompt, seed, image

    def generate_before_after(self) -> Iterator[int]:
        """Generate before_after.png; yields the number of images so far."""
        if self.is_main:
            with self._inference():
                yield from self.validation.generate_comparison(self.pipe)
            write_file(self.plan.folder / SHEET, self.validation.comparison_sheet().save)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Have the pipeline ready to generate images, with the weights to generate with, within a ``with`` block."""
        trainer = self.start().trainer
        with (
            self._explained("generating images", flags_for_generating),
            nullcontext() if self._has_ended else ready_to_generate(self.pipe, self.accelerator, [trainer.loss]),
            trainer.inference_weights(),
            memory_format(self.family.model, torch.contiguous_format),
            self.accelerator.autocast(),
        ):
            yield

    def build_trainer(self, cache: Cache) -> Trainer:
        """Encode the images and build the trainer; with a cache, other processes read what the first one wrote."""
        source_encoder = SourceEncoder(
            family=self.family,
            device=self.accelerator.device,
            data=self.task.image_settings,
            text_encoder_trains=self.config.adapter.text_encoder_trains,
            seed=self.config.run.seed,
            cache=cache,
        )
        with self.accelerator.main_process_first() if cache.folder else nullcontext():
            sources = self.task.sources(source_encoder)
        return build_trainer(self.task, sources, self.family, self.accelerator, self.plan, self.subspaces)

    def _explained(self, phase: str, flags: Callable[[TrainingConfig], Iterator[str]]) -> AbstractContextManager[None]:
        return explain_out_of_memory(phase, lambda: flags(self.config))

    def _trained_parameters(self) -> list[nn.Parameter]:
        modules: dict[str, Any] = self.trained_modules
        return [weight for module in modules.values() for weight in module.parameters() if weight.requires_grad]


def recorded_settings(config: TrainingConfig) -> str:
    """Return the text of a run's config.toml.

    Raises:
        ConfigError: a setting, such as a path, is not valid UTF-8.
    """
    return to_toml(with_values(with_recorded_paths(config), {"resume_from_checkpoint": None}))


def _base_record(run: Run) -> dict[str, bytes]:
    """Return the record of the base for the adapter's folder, by file name; empty without a record."""
    return base_files_of(run.pipe, run.config.run.mixed_precision)


def _extra_modules(task: Task) -> dict[str, Any]:
    return {name: extra.module for name, extra in task.extra_modules.items()}
