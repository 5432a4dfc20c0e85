"""Images of the class for prior preservation: one's own, and drawn by the base model where some are missing.

A drawn image's name holds a digest of everything it depends on, so it is used again when nothing changed and never
when something did, and an interrupted run goes on where it stopped.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hra_diffusion.formats.files import write_file
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.data.dataset import ENDINGS, Photo, check_images, image_files
from hra_diffusion.training.data.subjects import Subject
from hra_diffusion.training.outputs.model_digest import model_digest
from hra_diffusion.training.rng import stream

_DRAWN = re.compile(r"class-[0-9a-f]{12}-\d{5}\.png")


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """The class images of a run: ``count`` of them in ``folder``.

    The rest says how missing ones are drawn: with which pipeline (as its base model) and prompt, at which size in
    pixels, in how many steps, and how many at once. Image i depends on the seed and i alone.
    """

    folder: Path
    count: int
    pipe: Any
    prompt: str
    resolution: int
    steps: int
    guidance_scale: float
    seed: int
    batch_size: int

    @cached_property
    def files(self) -> list[Path]:
        """The images, whether they are drawn yet or not; one's own (all that no run has drawn) come first."""
        missing = range(self.count - len(self.own))
        digest = self._digest()
        return self.own + [self.folder / f"class-{digest}-{index:05}.png" for index in missing]

    @cached_property
    def own(self) -> list[Path]:
        """Those of the images that no run has drawn."""
        present = image_files(self.folder) if self.folder.is_dir() else []
        images = (path for path in present if path.suffix.lower() in ENDINGS)
        return [path for path in images if not _DRAWN.fullmatch(path.name)][: self.count]

    def draw_missing(self) -> Iterator[int]:
        """Draw what is missing; yields how many images there are after each batch."""
        missing = [path for path in self.files if not path.exists()]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            with disable_hra(self.pipe):
                images = self.pipe(
                    [self.prompt] * len(batch),
                    height=self.resolution,
                    width=self.resolution,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=[stream(self.seed, "class picture", int(path.stem[-5:])) for path in batch],
                ).images
            for path, image in zip(batch, images, strict=True):
                write_file(path, image.save)
            yield self.count - len(missing) + start + len(batch)

    def read(self) -> list[Photo]:
        """Check the images that are there.

        Raises:
            ImageError: not one can be read.
        """
        return check_images((path for path in self.files if path.exists()), self.folder)

    def _digest(self) -> str:
        drawing = (self.prompt, self.resolution, self.steps, self.guidance_scale, self.seed, model_digest(self.pipe))
        return hashlib.blake2b(repr(drawing).encode(), digest_size=6).hexdigest()


def images_of_classes(
    config: DreamBoothConfig, subjects: Sequence[Subject], folder: Path, pipe: Any
) -> list[ClassImages]:
    """Name the images of each class, which several subjects may share; none without prior preservation.

    Args:
        config: the settings, resolution included.
        subjects: who is to be learned.
        folder: the run's.
        pipe: what draws them, as its base model.
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
