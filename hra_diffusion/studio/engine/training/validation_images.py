"""The validation images of a training job, by step, with their prompts."""

from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.errors import HRAError
from hra_diffusion.studio.engine.training.job import Job
from hra_diffusion.studio.engine.training.training_job import IMAGES, read_settings
from hra_diffusion.training.config import ControlNetConfig


@dataclass(frozen=True, kw_only=True)
class ValidationImage:
    """An image that a job has generated after a step."""

    step: int
    prompt: str
    """Its prompt; "" where the job's settings are not those that made the image."""
    path: Path

    @property
    def caption(self) -> str:
        """Step and prompt."""
        return f"step {self.step}" + (f" · {self.prompt}" if self.prompt else "")


def validation_images(job: Job, step: int | None = None) -> list[ValidationImage]:
    """Return the validation images of a step, or of all steps, the newest first and in the order of the prompts."""
    prompts = _prompts(job.folder)
    order = {name: number for number, name in enumerate(prompts)}
    images = [
        ValidationImage(step=number, prompt=prompts.get(path.name, ""), path=path)
        for number, path in job.validation_images()
        if step in (None, number)
    ]
    return sorted(images, key=lambda image: (-image.step, order.get(image.path.name, len(order)), image.path.name))


def validation_steps(job: Job) -> list[int]:
    """Return the steps with validation images, the newest first."""
    return sorted({step for step, _ in job.validation_images()}, reverse=True)


def _prompts(folder: Path) -> dict[str, str]:
    """Return the validation prompts of a job by the file names of their images."""
    from hra_diffusion.pipelines.models import image_name  # imports torch, which a list of jobs does without

    try:
        config = read_settings(folder)
    except HRAError:
        return {}
    if isinstance(config, ControlNetConfig):
        captions = [file.read_text(encoding="utf-8", errors="replace") for file in _caption_files(folder)]
        return {image_name(caption, config.run.seed + number): caption for number, caption in enumerate(captions)}
    instance, class_ = config.data.instance_prompt or "", config.prior.class_prompt or ""
    prompts = [
        template.replace("{instance_prompt}", instance).replace("{class_prompt}", class_)
        for template in config.validation.validation_prompts
    ]
    seeds = range(config.run.seed, config.run.seed + config.validation.num_validation_images)
    return {image_name(prompt, seed): prompt for prompt in prompts for seed in seeds}


def _caption_files(folder: Path) -> list[Path]:
    return [path for path in sorted((folder / IMAGES).glob("*.txt")) if not path.name.startswith(".")]
