"""Class images for prior preservation (kohya: regularization images): the user's, completed by the base model.

The name of a generated image holds a digest of everything that it depends on. A later run reuses it only if nothing
changed, and an interrupted run resumes with the next image.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hra_diffusion.formats.files import write_file
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.pipelines.clip_skip import default_clip_skip
from hra_diffusion.pipelines.models import images_of
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.data.dataset import IMAGE_SUFFIXES, Photo, check_images, image_files
from hra_diffusion.training.data.subjects import Subject
from hra_diffusion.training.model_digest import model_digest
from hra_diffusion.training.rng import stream

_GENERATED = re.compile(r"class-[0-9a-f]{12}-\d{5}\.png")


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """The images of one class: ``count`` of them in ``folder``.

    The other fields are the settings for generating missing images with the base model of ``pipe``: the resolution in
    pixels, and the ``batch_size``. Image i depends on the seed and i, not on the batch.
    """

    folder: Path
    count: int
    pipe: Pipeline
    prompt: str
    resolution: int
    steps: int
    guidance_scale: float
    seed: int
    batch_size: int

    @cached_property
    def files(self) -> list[Path]:
        """The files of all images, existing or not: the user's come first, then generated ones."""
        missing = range(self.count - len(self.user_files))
        digest = self._digest()
        return self.user_files + [self.folder / f"class-{digest}-{index:05}.png" for index in missing]

    @cached_property
    def user_files(self) -> list[Path]:
        """The images that the user provided, at most ``count``."""
        files = image_files(self.folder) if self.folder.is_dir() else []
        images = (path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
        return [path for path in images if not _GENERATED.fullmatch(path.name)][: self.count]

    def generate_missing(self) -> Iterator[int]:
        """Generate missing images; yield the number of existing images after each batch."""
        missing = [path for path in self.files if not path.exists()]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            with disable_hra(self.pipe):
                output = self.pipe(
                    [self.prompt] * len(batch),
                    height=self.resolution,
                    width=self.resolution,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    # The stream's name decides the images: it stays.
                    generator=[stream(self.seed, "class picture", int(path.stem[-5:])) for path in batch],
                )
            for path, image in zip(batch, images_of(output), strict=True):
                write_file(path, image.save)
            yield self.count - len(missing) + start + len(batch)

    def read_photos(self) -> list[Photo]:
        """Check the existing images.

        Raises:
            ImageError: no image can be read.
        """
        return check_images((path for path in self.files if path.exists()), self.folder)

    def _digest(self) -> str:
        settings = (self.prompt, self.resolution, self.steps, self.guidance_scale, self.seed, model_digest(self.pipe))
        clip_skip = default_clip_skip(self.pipe)
        settings = settings if clip_skip is None else (*settings, clip_skip)
        return hashlib.blake2b(repr(settings).encode(), digest_size=6).hexdigest()


def find_class_images(
    config: DreamBoothConfig, subjects: Sequence[Subject], folder: Path, pipe: Pipeline
) -> list[ClassImages]:
    """Return the images of each class; an empty list without prior preservation.

    Subjects with the same class prompt share a class.

    Args:
        config: the settings, resolution included.
        subjects: the subjects of the run.
        folder: the run's folder.
        pipe: the pipeline that generates missing images, as its base model.
    """
    prior, validation = config.prior, config.validation
    if not prior.with_prior_preservation:
        return []
    root = prior.class_data_dir or folder / "class_images"
    names: dict[str, str] = {}
    for subject in subjects:
        names.setdefault(subject.class_prompt or "", subject.folder.name)
    return [
        ClassImages(
            folder=root / name if len(names) > 1 else root,
            count=prior.num_class_images,
            pipe=pipe,
            prompt=prompt,
            resolution=config.data.resolution or 0,
            steps=validation.num_inference_steps,
            guidance_scale=validation.guidance_scale,
            seed=config.run.seed,
            batch_size=prior.sample_batch_size,
        )
        for prompt, name in names.items()
    ]
