"""``hra-diffusion train``: DreamBooth with a progress bar. train_dreambooth_hra.py is the same command."""

from collections.abc import Sequence

from hra_diffusion.cli.arguments import parse_flags
from hra_diffusion.cli.training import dry_run, holding_folder, train, warn_of_unused_flags
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import complete_settings

DESCRIPTION = """Teach a diffusion model a subject from a few images (DreamBooth with HRA).

Without arguments, the embedded base learns one of the subjects in assets/subjects."""

USUAL_FLAGS = (
    "pretrained_model_name_or_path",
    "instance_data_dir",
    "instance_prompt",
    "class_prompt",
    "with_prior_preservation",
    "output_dir",
    "max_train_steps",
    "resolution",
    "learning_rate",
    "rank",
)


def main(arguments: Sequence[str]) -> None:
    """Train, save the adapter, generate before_after.png and evaluate; or describe the run with --dry_run."""
    config = parse_config(arguments)
    from hra_diffusion.training.dreambooth import DreamBooth  # imports torch and diffusers: not for --help
    from hra_diffusion.training.prepare import prepare_run

    run = prepare_run(DreamBooth(config))
    if config.run.dry_run:
        dry_run(run)
        return
    from hra_diffusion.cli.evaluate import evaluate_run

    with holding_folder(run):
        train(run)
        with run.accelerator.autocast():
            print(evaluate_run(run.plan.folder, run.pipe))
    print(f"{run.plan.folder}: adapter, config.toml, log.jsonl, loss.png, before_after.png")


def parse_config(arguments: Sequence[str]) -> DreamBoothConfig:
    """Read the settings from the command line: flags override the file of --config, which overrides the defaults.

    Raises:
        ConfigError: a flag or key is unknown, or a value is out of its range.
    """
    flags = parse_flags(
        DreamBoothConfig, arguments, prog="hra-diffusion train", description=DESCRIPTION, usual=USUAL_FLAGS
    )
    config = complete_settings(DreamBoothConfig, flags)
    warn_of_unused_flags(config, flags)
    return config
