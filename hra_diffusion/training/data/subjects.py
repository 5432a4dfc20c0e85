"""Who is to be learned: one subject a folder of images, with a prompt that names it by a rare word.

A folder of images is one subject; a folder of such folders is several. Its prompts come from the flags, else from a
``subject.toml`` in the folder (instance_prompt, class_prompt), else from the folder's name:

    dog6          "a photo of a sks dog", of the class "a photo of a dog"; a second subject without prompts is "ohwx"
    10_sks dog    "sks dog", of the class "dog", each image ten times a pass: kohya's way of writing it; 0_ is none
"""

import difflib
import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats.run_folder import is_run, tomllib
from hra_diffusion.text import shorten
from hra_diffusion.training.config import DataConfig, DreamBoothConfig
from hra_diffusion.training.data.captions import read_captions
from hra_diffusion.training.data.dataset import ENDINGS, HELD_OUT, Photo, check_images, file_digest, image_files
from hra_diffusion.training.data.masks import find_masks

logger = logging.getLogger(__name__)

RARE_WORDS = ("sks", "ohwx", "phol", "hta")
"""Words that mean little to a model, for subjects whose prompts are not told: each is one token of CLIP's vocabulary,
among its last thousand or so, where the rarest are (48136, 47993, 48140, 49384 of 49408)."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject, or a class of them."""

    folder: Path
    prompt: str
    """With its rare word."""
    class_prompt: str | None
    """Without it."""
    repeats: int = 1
    """How often a pass over the images shows each."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image and what it shows."""

    photo: Photo
    caption: str
    repeats: int = 1
    mask: Path | None = None
    """The file of its mask: its own where that is its transparency."""

    @property
    def digest(self) -> str:
        """Digest everything that training sees of it."""
        seen = (self.photo.digest, self.caption, self.repeats, self.mask and file_digest(self.mask))
        return hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()


def find_subjects(config: DreamBoothConfig) -> list[Subject]:
    """Find the subjects of a run.

    Raises:
        ImageError: there is no folder with images.
        ConfigError: a prompt is missing and cannot be derived.
    """
    root = config.data.instance_data_dir
    if root is None or not root.is_dir():
        raise ImageError(f"There is no image folder {root or '(none was named)'}: name one with --instance_data_dir.")
    named = (config.data.mask_data_dir, config.prior.class_data_dir, config.run.output_dir)
    of_other_use = {folder.resolve() for folder in named if folder}
    folders = subject_folders(root, of_other_use)
    if folders == [root] and (left_out := _folders_with_images(root, of_other_use)):
        logger.warning(
            "%s holds images and so is one subject: those in its folders %s are left out. For a subject in each "
            "folder, let no image lie beside them.",
            root,
            shorten(folder.name for folder in left_out),
        )
    told = {"instance_prompt": config.data.instance_prompt, "class_prompt": config.prior.class_prompt}
    described = [_subject_file(folder) | {name: text for name, text in told.items() if text} for folder in folders]
    names = [*(folder.name for folder in folders), *(str(about.get("instance_prompt")) for about in described)]
    taken = re.findall(r"[^\W_]+", " ".join(names))
    new_words = config.adapter.train_text_encoder_ti
    rare_words = iter([f"<{word}>" if new_words else word for word in RARE_WORDS if word not in taken])
    subjects = [_subject(folder, about, rare_words) for folder, about in zip(folders, described, strict=True)]
    if not subjects[0].repeats:
        raise ConfigError(f"{root} has 0_ in its name, which means that it is not shown: rename it.")
    for one, other in combinations(subjects, 2):
        if one.prompt == other.prompt and not config.data.instance_prompt:
            logger.warning('%s and %s share the prompt "%s", and become one.', one.folder, other.folder, one.prompt)
    for subject in subjects:
        if config.prior.with_prior_preservation and not subject.class_prompt:
            raise ConfigError(
                f"--class_prompt is missing for {subject.folder}, which prior preservation needs: give the instance "
                "prompt without its rare word, or pass --no_with_prior_preservation."
            )
    return subjects


def subject_folders(root: Path, of_other_use: Collection[Path] = ()) -> list[Path]:
    """Return the folder itself if it holds an image by name, else those of its sub-folders that do, if any.

    Folders of other use or of runs, those named 0_…, and images that are held out, are no subjects.
    """
    return [root] if _has_images(root) else _folders_with_images(root, of_other_use) or [root]


def _folders_with_images(root: Path, of_other_use: Collection[Path]) -> list[Path]:
    inside = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = (path for path in inside if path.name != HELD_OUT and not re.match("0+_", path.name))
    found = [folder for folder in named if folder.resolve() not in of_other_use and _has_images(folder)]
    if runs := [path.name for path in found if is_run(path)]:
        logger.warning("%s holds folders of runs, which are no subjects: %s.", root, shorten(runs))
    return [folder for folder in found if folder.name not in runs]


def read_examples(subject: Subject, data: DataConfig) -> list[Example]:
    """Check the subject's images and find their captions and masks.

    Raises:
        ImageError: not one image can be read, or a mask cannot be used.
        ConfigError: a caption file cannot be read.
    """
    photos = check_images(image_files(subject.folder), subject.folder)
    masks = find_masks(photos, data)
    return [
        replace(example, repeats=subject.repeats, mask=masks.get(example.photo.path))
        for example in captioned(photos, subject.folder, subject.prompt)
    ]


def captioned(photos: Sequence[Photo], folder: Path, prompt: str) -> list[Example]:
    """Give each image of a folder its caption there, or the prompt.

    Raises:
        ConfigError: a caption file cannot be read.
    """
    captions = read_captions([photo.path for photo in photos], folder)
    return [Example(photo=photo, caption=captions.get(photo.path, prompt)) for photo in photos]


def _subject(folder: Path, about: dict[str, Any], rare_words: Iterator[str]) -> Subject:
    """Make a subject of what is told about it, or of its folder's name where nothing is."""
    name = folder.resolve().name
    repeats, phrase = re.fullmatch(r"(?:(\d{1,3})_)?(.+)", name).groups()  # a year has four digits
    noun = " ".join(re.findall(r"[^\W\d_]+", name))
    prompt, class_prompt = about.get("instance_prompt"), about.get("class_prompt")
    if not prompt and not class_prompt and noun:
        if repeats:
            prompt, class_prompt = phrase, phrase.partition(" ")[2] or None
        elif word := next(rare_words, None):
            prompt, class_prompt = f"a photo of a {word} {noun}", f"a photo of a {noun}"
        logger.warning('No --instance_prompt: using "%s", after the name of %s.', prompt, folder)
    if not prompt:
        raise ConfigError(
            f"--instance_prompt is missing for {folder}: say what the images show, with a rare word for the subject, "
            f'for example "a photo of a {RARE_WORDS[0]} dog"; of several subjects, each in a subject.toml.'
        )
    return Subject(folder=folder, prompt=prompt, class_prompt=class_prompt, repeats=int(repeats or 1))


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in ENDINGS for path in image_files(folder))


def _subject_file(folder: Path) -> dict[str, Any]:
    path = folder / "subject.toml"
    if not path.is_file():
        return {}
    try:
        about = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}): correct or remove it.") from error
    known = ("instance_prompt", "class_prompt")
    for name in about.keys() - set(known):  # others may be of use to somebody
        if meant := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise ConfigError(f"{path} has {name}, which means nothing here: did you mean {meant[0]!r}?")
    for name in known:
        if not isinstance(about.get(name, ""), str):
            raise ConfigError(f"{path} has {name} = {about[name]!r}: write a text.")
    return about
