"""``hra-diffusion train-control``: ControlNet-style training. train_controlnet_hra.py is the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from hra_diffusion.cli.arguments import parse
from hra_diffusion.cli.progress import CONFIG_HELP, announce, defaults, finish, follow, warn_of_unused_flags
from hra_diffusion.training.config import (
    AdapterConfig,
    ControlConfig,
    ControlNetConfig,
    ControlValidationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PairsConfig,
    RunConfig,
)
from hra_diffusion.training.config.file import flag_types


def main(arguments: Sequence[str]) -> None:
    """Train, save the control and draw before_after.png; or say only what would be trained."""
    config = parse_config(arguments)
    warn_of_unused_flags(config, arguments)
    from hra_diffusion.training.controlnet import ControlNet  # imports torch and diffusers: not for --help

    run = ControlNet(config)
    announce(run)
    if config.run.dry_run:
        return
    follow(run)
    finish(run)
    print(f"{run.folder}: adapter, config.toml, log.jsonl, loss.png, before_after.png")


def parse_config(arguments: Sequence[str]) -> ControlNetConfig:
    """Read settings from the command line: flags over the file of --config over the defaults.

    Raises:
        ConfigError: a flag or key is unknown, or a value out of its range.
    """
    default = defaults(arguments, ControlNetConfig, "embedded_control.toml")

    def build(
        config: Annotated[Path | None, tyro.conf.arg(help=CONFIG_HELP)] = None,
        model: ModelConfig = default.model,
        pairs: PairsConfig = default.pairs,
        control: ControlConfig = default.control,
        adapter: AdapterConfig = default.adapter,
        objective: ObjectiveConfig = default.objective,
        optimizer: OptimizerConfig = default.optimizer,
        run: RunConfig = default.run,
        validation: ControlValidationConfig = default.validation,
    ) -> ControlNetConfig:
        """Teach a diffusion model to follow a condition (ControlNet-style training with HRA).

        Without arguments: the embedded base learns to follow Canny edges.
        """
        return ControlNetConfig(
            model=model,
            pairs=pairs,
            control=control,
            adapter=adapter,
            objective=objective,
            optimizer=optimizer,
            run=run,
            validation=validation,
        )

    return parse(build, arguments, prog="hra-diffusion train-control", flags=["config", *flag_types(ControlNetConfig)])
