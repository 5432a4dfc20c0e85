"""All settings of a run, checked as a whole by their constructor."""

from dataclasses import dataclass, field, fields

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.adapter import AdapterConfig
from hra_diffusion.training.config.bounds import check_value
from hra_diffusion.training.config.data import DataConfig, PriorConfig
from hra_diffusion.training.config.model import ModelConfig
from hra_diffusion.training.config.objective import ObjectiveConfig
from hra_diffusion.training.config.optimizer import OptimizerConfig
from hra_diffusion.training.config.run import RunConfig, SubjectValidationConfig, ValidationConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of every kind of run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        """Check the range of each setting, and refuse contradictory settings.

        Raises:
            ConfigError: a value is out of its range, or two settings contradict each other.
        """
        for group in fields(self):
            for name, value in vars(getattr(self, group.name)).items():
                check_value(name, value)
        if self.objective.snr_gamma is not None and self.objective.debiased_estimation_loss:
            raise ConfigError("--snr_gamma and --debiased_estimation_loss are both weightings of the loss: choose one.")
        if self.run.blocks_to_swap:
            self._check_block_swap()
        self._check_adapter()
        if self.optimizer.optimizer == "schedule_free" and self.optimizer.lr_scheduler != "constant":
            raise ConfigError(
                f"--lr_scheduler is {self.optimizer.lr_scheduler}, but --optimizer schedule_free has no "
                "schedule: leave --lr_scheduler out; --lr_warmup_steps has an effect."
            )
        if self.optimizer.optimizer == "prodigy" and self.optimizer.text_encoder_lr is not None:
            raise ConfigError(
                "--text_encoder_lr contradicts --optimizer prodigy, which finds one rate for all: leave one out."
            )

    def _check_adapter(self) -> None:
        adapter = self.adapter
        if adapter.init_adapter is not None and adapter.init_weights == "gradient":
            raise ConfigError("--init_weights gradient is for a new adapter, not for --init_adapter: leave one out.")
        if adapter.use_magnitude:
            self.optimizer.check_magnitudes()
        reserved = next((name for name in ("slot", "orthogonal_to") if getattr(adapter, name) is not None), None)
        if reserved and adapter.use_magnitude:
            raise ConfigError(
                f"--use_magnitude and --{reserved} contradict each other: with magnitudes, adapters do not add up. "
                "Leave one out."
            )
        if reserved and adapter.init_weights == "gradient":
            raise ConfigError(
                f"--init_weights gradient and --{reserved} contradict each other: the gradient's planes are outside of "
                "the reserved subspace. Leave one out."
            )

    def _check_block_swap(self) -> None:
        if not self.run.gradient_checkpointing:
            raise ConfigError(
                "--blocks_to_swap saves no memory without --gradient_checkpointing, since the backward pass needs the "
                "weights of all blocks: add it."
            )
        if self.run.torch_compile:
            raise ConfigError(
                "--blocks_to_swap and --torch_compile contradict each other: compiled blocks expect their weights in "
                "one place. Leave one out."
            )
        if self.model.quantization == "nf4":
            raise ConfigError(
                "--blocks_to_swap cannot move weights in nf4: choose --quantization int8 or fp8, or leave one out."
            )


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(TrainingConfig):
    """A DreamBooth run: training of a subject from a few images."""

    data: DataConfig = field(default_factory=DataConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    validation: SubjectValidationConfig = field(default_factory=SubjectValidationConfig)
