"""``hra-diffusion train-control``: ControlNet-style training. train_controlnet_hra.py is the same command."""

from collections.abc import Sequence

from hra_diffusion.cli.arguments import parse_flags
from hra_diffusion.cli.training import dry_run, holding_folder, train, warn_of_unused_flags
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.defaults import complete_settings

DESCRIPTION = """Teach a diffusion model a condition such as edges (ControlNet-style training with HRA).

Without arguments, the embedded base learns Canny edges."""

USUAL_FLAGS = (
    "pretrained_model_name_or_path",
    "train_data_dir",
    "annotator",
    "validation_image",
    "validation_prompt",
    "output_dir",
    "max_train_steps",
    "resolution",
    "learning_rate",
    "rank",
)


def main(arguments: Sequence[str]) -> None:
    """Train, save the control and generate before_after.png; or describe the run with --dry_run."""
    config = parse_config(arguments)
    from hra_diffusion.training.controlnet import ControlNet  # imports torch and diffusers: not for --help
    from hra_diffusion.training.prepare import prepare_run

    run = prepare_run(ControlNet(config))
    if config.run.dry_run:
        dry_run(run)
        return
    with holding_folder(run):
        train(run)
    print(f"{run.plan.folder}: adapter, config.toml, log.jsonl, loss.png, before_after.png")


def parse_config(arguments: Sequence[str]) -> ControlNetConfig:
    """Read the settings from the command line: flags override the file of --config, which overrides the defaults.

    Raises:
        ConfigError: a flag or key is unknown, or a value is out of its range.
    """
    flags = parse_flags(
        ControlNetConfig, arguments, prog="hra-diffusion train-control", description=DESCRIPTION, usual=USUAL_FLAGS
    )
    config = complete_settings(ControlNetConfig, flags)
    warn_of_unused_flags(config, flags)
    return config
