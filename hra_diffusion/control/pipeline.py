"""Stable Diffusion with a control, as a diffusers pipeline."""

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from hra_diffusion.adapter.mixture import Combine
from hra_diffusion.control.guiding import Control, Images
from hra_diffusion.control.loading import load_hra_control, save_hra_control
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import list_hra_adapters, unload_hra_weights

SAVED = "control"
"""A saved pipeline's sub-folder with its control."""
_TRIAL = "control on trial"


class StableDiffusionHRAControlPipeline(StableDiffusionPipeline):
    """A pipeline with a prompt and a condition; without ``image`` it is the base pipeline.

    >>> pipe = StableDiffusionHRAControlPipeline.from_pretrained("assets/emoji-sd", control="outputs/canny")
    >>> pipe("a cat on the beach", image=image).images[0]

    Attributes:
        control: the loaded control; None without one.
    """

    control: Control | None = None

    @classmethod
    def from_pretrained(cls, name: Any, control: str | Path | None = None, **options: Any) -> Any:
        """Load a base model with a control, or a saved pipeline with its control.

        Args:
            name: folder or hub name of the base model or the saved pipeline.
            control: the control's folder, its run's folder, or its name on the hub.
            options: further arguments of diffusers' ``from_pretrained``.

        Raises:
            AdapterFileError: the control cannot be used.
        """
        pipe = super().from_pretrained(name, **options)
        saved = Path(name) / SAVED
        if control is not None or saved.is_dir():
            pipe.load_control(control or saved)
        return pipe

    def load_control(self, folder: str | Path, adapter_name: str = "control", **hub: Any) -> None:
        """Replace the loaded control; on an error the old one stays. See `load_hra_control`."""
        if self.control and self.control.adapter_name in list_hra_adapters(self):
            load_hra_control(self, folder, _TRIAL, **hub)  # raises while the old control is loaded
            unload_hra_weights(self, _TRIAL)
            unload_hra_weights(self, self.control.adapter_name)
        self.control = load_hra_control(self, folder, adapter_name, **hub)

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Save the base model and, in the sub-folder ``control``, the control."""
        super().save_pretrained(save_directory, *args, **options)
        if self.control:
            save_hra_control(self, self.control, Path(save_directory) / SAVED)

    def __call__(
        self,
        prompt: Any = None,
        image: Images | None = None,
        *,
        control_strength: float = 1.0,
        control_start: float = 0.0,
        control_end: float = 1.0,
        control_unconditional: bool = False,
        control_combine: Combine = "mean",
        annotated: bool = False,
        **options: Any,
    ) -> Any:
        """Generate images with the arguments of :meth:`Control.guiding` and StableDiffusionPipeline.

        Raises:
            ConfigError: there is an image without a control, or a number is out of its range.
        """
        if image is None:
            return super().__call__(prompt, **options)
        if self.control is None:
            raise ConfigError("The pipeline has an image but no control: load a control with load_control.")
        with self.control.guiding(
            self,
            image,
            strength=control_strength,
            start=control_start,
            end=control_end,
            unconditional=control_unconditional,
            annotated=annotated,
            combine=control_combine,
        ):
            return super().__call__(prompt, **options)
