"""``hra-diffusion train``: DreamBooth with a progress bar. train_dreambooth_hra.py is the same."""

import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tqdm import tqdm

from hra_diffusion.cli.arguments import flag_value, parse
from hra_diffusion.cli.evaluate import evaluate_run
from hra_diffusion.cli.stopping import Stopped, StopWish, stop_wish
from hra_diffusion.training.config import (
    AdapterConfig,
    DataConfig,
    DreamBoothConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimiserConfig,
    PreviewConfig,
    PriorConfig,
    RunConfig,
)
from hra_diffusion.training.config_file import flag_types, read_toml
from hra_diffusion.training.defaults import embedded_defaults

if TYPE_CHECKING:
    from PIL.Image import Image

    from hra_diffusion.training.dreambooth import DreamBooth
    from hra_diffusion.training.loop import StepRecord
    from hra_diffusion.training.trackers import Tracker

CONFIG_HELP = "A TOML file with any of these settings, such as the config.toml of an earlier run; flags win over it."


def main(arguments: Sequence[str]) -> None:
    """Train, save the adapter, draw before_after.png and measure; or say only what would be trained."""
    config = parse_config(arguments)
    from hra_diffusion.training.dreambooth import DreamBooth  # imports torch and diffusers: not for --help

    run = DreamBooth(config)
    if config.run.dry_run:
        from hra_diffusion.training.preflight import describe

        told = describe(run)
        if run.is_main:
            print(told)
        return
    if run.is_main:
        print(run.summary, file=sys.stderr)
        if run.resumes_from:
            print(f"Going on from {run.resumes_from}", file=sys.stderr)
    if run.class_images:
        _finish(run.draw_class_images(), "class pictures", sum(len(images.files) for images in run.class_images))
    _train(run)
    run.save()
    _finish(run.draw_before_after(), "before and after", run.portrait.total)
    if run.is_main:
        with run.accelerator.autocast():
            print(evaluate_run(run.folder, run.pipe))
        print(f"{run.folder}: adapter, config.toml, log.jsonl, loss.png, before_after.png")


def _train(run: "DreamBooth") -> None:
    """Take all steps, with a progress bar; a signal makes the last of them a checkpoint.

    Raises:
        Stopped: a signal came.
    """
    from hra_diffusion.training.trackers import tracking  # imports accelerate: not for --help

    start = run.recording.trainer.done  # encodes the pictures: until then a signal may stop everything
    with (
        tracking(run.tracker if run.is_main else None, run.folder, run.config, start) as tracker,
        stop_wish(patient=run.accelerator.num_processes > 1) as wish,
        tqdm(desc="training", total=run.total_steps, initial=start, unit="step", disable=not run.is_main) as bar,
    ):
        for record in run.steps():
            rate = (bar.format_dict["rate"] or 0) * run.pictures_per_step
            bar.set_postfix(_numbers(record, rate), refresh=False)
            bar.update()
            tracker.log(record)
            if record.step % (run.config.preview.validation_steps or sys.maxsize) == 0:
                _look(run, tracker, record.step, wish)
            if run.any_process(wish.number is not None):
                checkpoint = run.save_checkpoint()
                raise Stopped(
                    f"Stopped after step {record.step}, which {checkpoint} holds: go on from there with "
                    "--resume_from_checkpoint latest.",
                    wish.number or signal.SIGTERM,
                )


def _numbers(record: "StepRecord", pictures_per_second: float) -> dict[str, str]:
    rates = dict.fromkeys(f"{rate:.3g}" for rate in record.learning_rates.values())
    return {"loss": f"{record.loss:.4f}", "lr": "/".join(rates), "pictures/s": f"{pictures_per_second:.1f}"}


def _look(run: "DreamBooth", tracker: "Tracker", step: int, wish: StopWish) -> None:
    """Draw the validation pictures, and send them to the tracker; a signal ends the drawing."""
    pictures: dict[str, list[Image]] = {}
    for prompt, _, picture in run.draw_validation():
        pictures.setdefault(prompt, []).append(picture)
        if wish.number is not None:
            return
    tracker.log_pictures(pictures, step)


def parse_config(arguments: Sequence[str]) -> DreamBoothConfig:
    """Read settings from the command line: flags over the file of --config over the defaults.

    Where no model is named, the embedded base is used and the defaults are those that fit it.

    Raises:
        ConfigError: a flag or key is unknown, or a value out of its range.
    """
    path = flag_value(arguments, "config")
    told = read_toml(Path(path), DreamBoothConfig()) if path else DreamBoothConfig()
    named = flag_value(arguments, "pretrained_model_name_or_path") or told.model.pretrained_model_name_or_path
    default = DreamBoothConfig() if named else embedded_defaults()
    if path:
        default = read_toml(Path(path), default)

    def build(
        config: Annotated[Path | None, tyro.conf.arg(help=CONFIG_HELP)] = None,
        model: ModelConfig = default.model,
        data: DataConfig = default.data,
        prior: PriorConfig = default.prior,
        adapter: AdapterConfig = default.adapter,
        objective: ObjectiveConfig = default.objective,
        optimiser: OptimiserConfig = default.optimiser,
        run: RunConfig = default.run,
        preview: PreviewConfig = default.preview,
    ) -> DreamBoothConfig:
        """Teach a diffusion model a subject from a few pictures (DreamBooth with HRA).

        Without arguments: the embedded base and one of the subjects that come with it.
        """
        return DreamBoothConfig(
            model=model,
            data=data,
            prior=prior,
            adapter=adapter,
            objective=objective,
            optimiser=optimiser,
            run=run,
            preview=preview,
        )

    return parse(build, arguments, prog="hra-diffusion train", flags=["config", *flag_types(DreamBoothConfig)])


def _finish(progress: Iterable[int], what: str, total: int) -> None:
    """Show a bar for something that yields how much of it is done; none when there is nothing to do."""
    bar: Any = None
    for done in progress:
        bar = bar or tqdm(desc=what, total=total, unit="picture")
        bar.update(done - bar.n)
    if bar:
        bar.close()
