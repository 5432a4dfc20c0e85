"""Class images for prior preservation (kohya: regularization images): the user's, completed by the base model.

The user's are in the class's folder, or below it in folders named as kohya's scripts name them, 1_dog; their number of
repeats has no effect.

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
from hra_diffusion.pipelines.kinds import call_options
from hra_diffusion.pipelines.models import images_of
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.data.captions import CAPTION_SUFFIXES, METADATA_FILES, read_captions
from hra_diffusion.training.data.dataset import Photo, check_images
from hra_diffusion.training.data.inventory import IMAGE_SUFFIXES, entries, has_images, image_files, report_unused
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
    user_folders: Sequence[Path]
    """Folders of the images that the user provided."""
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
        files = [path for folder in self.user_folders if folder.is_dir() for path in image_files(folder)]
        images = (path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
        return [path for path in images if not _GENERATED.fullmatch(path.name)][: self.count]

    @property
    def captions(self) -> dict[Path, str]:
        """Captions of the images that have one.

        Raises:
            ConfigError: a caption file cannot be read.
        """
        existing = [path for path in self.files if path.exists()]
        captions: dict[Path, str] = {}
        for folder in dict.fromkeys([*self.user_folders, self.folder]):
            captions |= read_captions([path for path in existing if path.parent == folder], folder)
        return captions

    def generate_missing(self) -> Iterator[int]:
        """Generate missing images; yield the number of existing images after each batch."""
        missing = [path for path in self.files if not path.exists()]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            options = {
                "height": self.resolution,
                "width": self.resolution,
                "num_inference_steps": self.steps,
                "guidance_scale": self.guidance_scale,
            }
            with disable_hra(self.pipe):
                output = self.pipe(
                    prompt=[self.prompt] * len(batch),
                    **call_options(self.pipe, options),
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
    classes = [
        ClassImages(
            folder=root / name if len(names) > 1 else root,
            user_folders=_user_folders(root, name if len(names) > 1 else None, prompt),
            count=prior.num_class_images,
            pipe=pipe,
            prompt=prompt,
            resolution=config.data.largest_resolution or 0,
            steps=validation.num_inference_steps,
            guidance_scale=validation.guidance_scale or 0.0,
            seed=config.run.seed,
            batch_size=prior.sample_batch_size,
        )
        for prompt, name in names.items()
    ]
    _report_unused_files(root, classes)
    return classes


def _user_folders(root: Path, name: str | None, prompt: str) -> list[Path]:
    """Return the folders of a class's images below ``root``: itself or its folder ``name``, else kohya's 1_dog.

    Of kohya's folders, those are the class's whose name ends its prompt; all of them if there is no other class.
    """
    folder = root / name if name else root
    if not root.is_dir() or (folder.is_dir() and has_images(folder)):
        return [folder]
    matches = [(path, re.fullmatch(r"\d{1,3}_(.+)", path.name)) for path in entries(root) if path.is_dir()]
    kohya = {path: match[1].lower() for path, match in matches if match and not re.match("0+_", path.name)}
    of_class = [path for path, noun in kohya.items() if f" {prompt.lower()}".endswith(f" {noun}")]
    return of_class or (list(kohya) if kohya and not name else [folder])


def _report_unused_files(root: Path, classes: Sequence[ClassImages]) -> None:
    """Report the unused files in the folder of class images."""
    used = {path for images in classes for path in (images.folder, *images.user_folders, *images.user_files)}
    folders = [root, *(folder for images in classes for folder in images.user_folders)]
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            files = [path for path in entries(folder) if path.is_file()]
            stems = {path.stem for path in used}
            captions = [path for path in files if path.suffix.lower() in CAPTION_SUFFIXES and path.stem in stems]
            generated = [path for path in files if _GENERATED.fullmatch(path.name)]
            tables = [folder / table for table in METADATA_FILES]
            more = {path: "more than --num_class_images" for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
            report_unused(folder, [*used, *captions, *generated, *tables], more)
