"""``hra-diffusion train``: DreamBooth with a progress bar. train_dreambooth_hra.py is the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from hra_diffusion.cli.arguments import parse
from hra_diffusion.cli.evaluate import evaluate_run
from hra_diffusion.cli.progress import (
    CONFIG_HELP,
    announce,
    defaults,
    finish,
    follow,
    show_progress,
    warn_of_unused_flags,
)
from hra_diffusion.training.config import (
    AdapterConfig,
    DataConfig,
    DreamBoothConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PriorConfig,
    RunConfig,
    SubjectValidationConfig,
)
from hra_diffusion.training.config.file import flag_types


def main(arguments: Sequence[str]) -> None:
    """Train, save the adapter, draw before_after.png and measure; or say only what would be trained."""
    config = parse_config(arguments)
    warn_of_unused_flags(config, arguments)
    from hra_diffusion.training.dreambooth import DreamBooth  # imports torch and diffusers: not for --help

    run = DreamBooth(config)
    announce(run)
    if config.run.dry_run:
        return
    if run.class_images:
        show_progress(run.draw_class_images(), "class images", sum(len(images.files) for images in run.class_images))
    follow(run)
    finish(run)
    with run.accelerator.autocast():
        print(evaluate_run(run.folder, run.pipe))
    print(f"{run.folder}: adapter, config.toml, log.jsonl, loss.png, before_after.png")


def parse_config(arguments: Sequence[str]) -> DreamBoothConfig:
    """Read settings from the command line: flags over the file of --config over the defaults.

    Where no model is named, the embedded base is used and the defaults are those that fit it.

    Raises:
        ConfigError: a flag or key is unknown, or a value out of its range.
    """
    default = defaults(arguments, DreamBoothConfig, "embedded.toml")

    def build(
        config: Annotated[Path | None, tyro.conf.arg(help=CONFIG_HELP)] = None,
        model: ModelConfig = default.model,
        data: DataConfig = default.data,
        prior: PriorConfig = default.prior,
        adapter: AdapterConfig = default.adapter,
        objective: ObjectiveConfig = default.objective,
        optimizer: OptimizerConfig = default.optimizer,
        run: RunConfig = default.run,
        validation: SubjectValidationConfig = default.validation,
    ) -> DreamBoothConfig:
        """Teach a diffusion model a subject from a few images (DreamBooth with HRA).

        Without arguments: the embedded base and one of the subjects that come with it.
        """
        return DreamBoothConfig(
            model=model,
            data=data,
            prior=prior,
            adapter=adapter,
            objective=objective,
            optimizer=optimizer,
            run=run,
            validation=validation,
        )

    return parse(build, arguments, prog="hra-diffusion train", flags=["config", *flag_types(DreamBoothConfig)])
