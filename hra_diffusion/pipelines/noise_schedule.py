"""Changes to a pipeline's noise schedule: the prediction type, and zero terminal signal-to-noise ratio."""

import inspect

from diffusers import DDIMScheduler

from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.pipelines.protocol import Pipeline


def set_prediction_type(pipe: Pipeline, prediction_type: str, name: str) -> None:
    """Give a pipeline's scheduler another prediction type: epsilon, sample or v_prediction.

    Raises:
        ConfigError: the model is a flow-matching model, or its scheduler has no prediction type.
    """
    config = pipe.scheduler.config
    if config.get("prediction_type") == prediction_type:
        return
    if config.get("prediction_type", "flow_prediction") == "flow_prediction":
        raise ConfigError(
            f"--prediction_type is {prediction_type}, and {name!r} is a flow-matching model, which has no other: leave "
            "it out."
        )
    pipe.scheduler = type(pipe.scheduler).from_config(config, prediction_type=prediction_type)


def rescale_to_zero_snr(pipe: Pipeline, name: str) -> None:
    """Give a pipeline a scheduler of zero terminal signal-to-noise ratio (Lin et al., arXiv 2305.08891).

    Raises:
        ModelError: the model predicts noise or flow.
    """
    config = pipe.scheduler.config
    if config.get("prediction_type") not in ("v_prediction", "sample"):
        raise ModelError(
            f"--rescale_betas_zero_snr is for models that predict v or the image; {name!r} has "
            f"{config.get('prediction_type', 'flow')}, which determines no image at pure noise: leave it out."
        )
    known = inspect.signature(type(pipe.scheduler).__init__).parameters
    kind = type(pipe.scheduler) if "rescale_betas_zero_snr" in known else DDIMScheduler
    pipe.scheduler = kind.from_config(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
