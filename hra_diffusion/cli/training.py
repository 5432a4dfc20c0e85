"""Training on the command line: class images, steps with a progress bar, validation images, results.

A signal becomes a checkpoint.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hra_diffusion.cli.stopping import Stopped, StopRequest, stop_request
from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.dependencies import unused_flags
from hra_diffusion.training.config.file import flat_values

if TYPE_CHECKING:
    from PIL.Image import Image

    from hra_diffusion.training.loop.steps import StepRecord
    from hra_diffusion.training.outputs.trackers import Tracker
    from hra_diffusion.training.run import Run

logger = logging.getLogger(__name__)


def warn_of_unused_flags(config: TrainingConfig, flags: Mapping[str, Any]) -> None:
    """Warn of given flags that have no effect without another."""
    given = [name for name, value in flags.items() if value is not None]
    for sentence in unused_flags(flat_values(config), given):
        logger.warning(sentence)


def model_summary(run: "Run") -> str:
    """Return the first line of a run: what the model is taken for, and the device."""
    from hra_diffusion.training.families.description import describe_model

    process = run.family.noise_process(run.config.objective.flow_shift)
    return describe_model(run.family, process, run.accelerator.device, run.config.model.quantization)


def dry_run(run: "Run") -> None:
    """Print the inputs and costs of a run."""
    from hra_diffusion.training.dry_run import describe

    description = describe(run)
    if run.is_main:
        print(model_summary(run))
        _report_variables(run)
        print(description)


def train(run: "Run") -> None:
    """Train, save the adapter and generate before_after.png. Of several processes, the main one alone returns.

    Raises:
        Stopped: a signal came.
    """
    if run.is_main:
        _report_variables(run)
        print(model_summary(run), file=sys.stderr)
        print(run.summary, file=sys.stderr)
        if run.plan.checkpoint:
            print(f"Resuming from {run.plan.checkpoint}", file=sys.stderr)
    show_progress(run.generate_class_images(), "class images", run.task.num_class_images)
    _take_steps(run)
    run.save()
    _end_training(run)
    show_progress(run.generate_before_after(), "before and after", run.validation.num_comparison_images)


def holding_folder(run: "Run") -> AbstractContextManager[None]:
    """Return the context in which no other process can run in the output folder."""
    from hra_diffusion.training.outputs.lock import locked  # imports psutil: not for --help

    return locked(run.plan.folder) if run.is_main else nullcontext()


def _report_variables(run: "Run") -> None:
    """Print accelerate's environment variables that change the run."""
    from hra_diffusion.training.devices.accelerate_variables import describe_variables

    if description := describe_variables(run.config.run):
        print(f"accelerate: {description}.", file=sys.stderr)


def _take_steps(run: "Run") -> None:
    """Take all steps, with a progress bar; a signal makes the last of them a checkpoint.

    Raises:
        Stopped: a signal came.
    """
    from hra_diffusion.training.outputs.trackers import (  # imports accelerate: not for --help
        choose_tracker,
        open_tracker,
    )

    run.start()  # until the images are encoded, a signal may end the process at once
    tracker_name = choose_tracker(run.config.run.report_to) if run.is_main else None
    first, last = run.plan.initial_global_step, run.plan.total_steps
    with (
        open_tracker(tracker_name, run.plan.folder, run.config, first) as tracker,
        stop_request(patient=run.accelerator.num_processes > 1) as request,
        tqdm(desc="training", total=last, initial=first, unit="step", disable=not run.is_main) as bar,
    ):
        validation: dict[str, str] = {}

        def report(record: "StepRecord") -> None:  # on a GPU one step late, so that steps do not wait
            rate = (bar.format_dict["rate"] or 0) * run.images_per_step
            if record.validation_loss is not None:
                validation["val_loss"] = f"{record.validation_loss:.4f}"
            bar.set_postfix({**_numbers(record, rate), **validation}, refresh=False)
            tracker.log(record)

        for record in run.steps(report):
            bar.update()
            if record.step % (run.config.validation.validation_steps or sys.maxsize) == 0:
                _validate(run, tracker, record.step, request)
            if _any_process(run, request.number is not None):
                checkpoint = run.save_checkpoint()
                stopped = Stopped(
                    f"Stopped after step {record.step}, saved as {checkpoint}: resume with "
                    "--resume_from_checkpoint latest.",
                    request.number or signal.SIGTERM,
                )
                _end_training(run, stopped.exit_code)
                raise stopped


def _any_process(run: "Run", stop: bool) -> bool:
    """Whether any process wants to stop; all processes must call this together."""
    if run.accelerator.num_processes == 1:  # the trigger is on the device, and reading it would wait for the step
        return stop
    if stop:
        run.accelerator.set_trigger()
    return run.accelerator.check_trigger()


def _end_training(run: "Run", exit_code: int = 0) -> None:
    """End all processes but the main one; all processes must call this.

    They exit without Python's finalization: a thread of gloo that frees a tensor then aborts its process, as one in
    eight did on a loaded machine, and the whole launch with it.
    """
    run.accelerator.end_training()
    if not run.is_main:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _numbers(record: "StepRecord", images_per_second: float) -> dict[str, str]:
    rates = dict.fromkeys(f"{rate:.3g}" for rate in record.learning_rates.values())
    angles = [f"{angle:.1f}°" for angle in record.component_angles.values()]
    numbers = {"loss": f"{record.loss:.4f}", "lr": "/".join(rates)}
    return numbers | ({"angle": "/".join(angles)} if angles else {}) | {"images/s": f"{images_per_second:.1f}"}


def _validate(run: "Run", tracker: "Tracker", step: int, request: StopRequest) -> None:
    """Generate the validation images and send them to the tracker; a signal ends the generation."""
    images: dict[str, list[Image]] = {}
    for prompt, _, image in run.generate_validation():
        images.setdefault(prompt, []).append(image)
        if request.number is not None:
            return
    tracker.log_images(images, step)


def show_progress(counts: Iterable[int], what: str, total: int) -> None:
    """Show a progress bar for counts up to ``total``, once there is one."""
    bar: Any = None
    for count in counts:
        bar = bar or tqdm(desc=what, total=total, unit="image")
        bar.update(count - bar.n)
    if bar:
        bar.close()
