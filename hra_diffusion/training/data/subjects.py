"""Subjects of a run: each a folder of images, with an instance prompt that contains a trigger word.

A folder of images is one subject; a folder of such folders is several. The prompts come from the flags, else from a
``subject.toml`` in the folder (instance_prompt, class_prompt), else from the folder's name:

    dog6          "a photo of a sks dog", class "a photo of a dog"; a second subject without prompts gets "ohwx"
    10_sks dog    "sks dog", class "dog", each image ten times an epoch, as in kohya's scripts; 0_ is left out
"""

import difflib
import hashlib
import logging
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats.run_folder import is_run
from hra_diffusion.formats.trigger_words import TRIGGER_WORDS
from hra_diffusion.training.config import DataConfig, DreamBoothConfig
from hra_diffusion.training.data.captions import CAPTION_SUFFIXES, METADATA_FILES, read_captions
from hra_diffusion.training.data.dataset import Photo, check_images, file_digest
from hra_diffusion.training.data.inventory import (
    HELD_OUT,
    SUBJECT_FILE,
    entries,
    has_images,
    image_files,
    report_unused,
)
from hra_diffusion.training.data.masks import find_masks, report_unused_masks

logger = logging.getLogger(__name__)

TRAIN = "train"
"""Folder of the training images in the hub's layout of image folders; other splits are beside it."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject: its folder, prompts and repeats."""

    folder: Path
    prompt: str
    """The instance prompt, with the trigger word."""
    class_prompt: str | None
    """The prompt of its class, without the trigger word."""
    repeats: int = 1
    """How often each image occurs in an epoch."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A training image with its caption."""

    photo: Photo
    caption: str
    repeats: int = 1
    mask: Path | None = None
    """The file of its mask; the image itself if the mask is its transparency."""

    @property
    def digest(self) -> str:
        """Digest of the image, caption, repeats and mask."""
        content = (self.photo.digest, self.caption, self.repeats, self.mask and file_digest(self.mask))
        return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()


def find_subjects(config: DreamBoothConfig) -> list[Subject]:
    """Find the subjects of a run with their prompts.

    Raises:
        ImageError: the folder does not exist.
        ConfigError: a prompt is missing and cannot be derived from a folder's name.
    """
    root = config.data.instance_data_dir
    if root is None or not root.is_dir():
        raise ImageError(f"There is no image folder {root or '(none was named)'}: name one with --instance_data_dir.")
    folders = subject_folders(root, _reserved(config))
    flags = {"instance_prompt": config.data.instance_prompt, "class_prompt": config.prior.class_prompt}
    prompts = [_read_subject_file(folder) | {flag: text for flag, text in flags.items() if text} for folder in folders]
    texts = [*(folder.name for folder in folders), *(str(table.get("instance_prompt")) for table in prompts)]
    used_words = re.findall(r"[^\W_]+", " ".join(texts))
    free_words = [word for word in TRIGGER_WORDS if word not in used_words]
    triggers = iter([f"<{word}>" for word in free_words] if config.adapter.train_text_encoder_ti else free_words)
    subjects = [_subject(folder, table, triggers) for folder, table in zip(folders, prompts, strict=True)]
    if not subjects[0].repeats:
        raise ConfigError(f"The name of {root} begins with 0_, which means no repeats: rename the folder.")
    for first, second in combinations(subjects, 2):
        if first.prompt == second.prompt and not config.data.instance_prompt:
            logger.warning(
                '%s and %s share the prompt "%s": they are learned as one subject.',
                first.folder,
                second.folder,
                first.prompt,
            )
    for subject in subjects:
        if config.prior.with_prior_preservation and not subject.class_prompt:
            raise ConfigError(
                f"--class_prompt is missing for {subject.folder}, and prior preservation needs it: give the instance "
                "prompt without its trigger word, or pass --no_with_prior_preservation."
            )
    return subjects


def subject_folders(root: Path, reserved: Collection[Path] = ()) -> list[Path]:
    """Return the folders of subjects: ``root`` if it holds an image, else its sub-folders with images, else ``root``.

    Reserved folders, folders of runs, held_out, and folders named 0_… are no subjects. In the hub's layout of image
    folders, with a table of captions in ``root``, the folder train is the subject.
    """
    if has_images(root):
        return [root]
    if _is_split(root / TRAIN) and has_images(root / TRAIN):
        return [root / TRAIN]
    folders = [path for path in entries(root) if path.is_dir() and path.name != HELD_OUT]
    candidates = [path for path in folders if not re.match("0+_", path.name) and path.resolve() not in reserved]
    return [folder for folder in candidates if has_images(folder) and not is_run(folder)] or [root]


def _is_split(folder: Path) -> bool:
    """Whether a folder is the training split of an image folder on the hub: train, with a table of captions above."""
    tables = [folder.parent / name for name in METADATA_FILES]
    return folder.name == TRAIN and folder.is_dir() and any(table.is_file() for table in tables)


def _reserved(config: DreamBoothConfig) -> set[Path]:
    """Return the folders of other flags, without subjects."""
    settings = (config.data.mask_data_dir, config.prior.class_data_dir, config.run.output_dir, config.data.cache_dir)
    return {folder.resolve() for folder in settings if folder}


def report_unused_files(config: DreamBoothConfig, examples: Sequence[Example]) -> None:
    """Report the unused files in the folders of images and masks."""
    root, masks = config.data.instance_data_dir or Path(), [example.mask for example in examples if example.mask]
    folders = {example.photo.path.parent for example in examples}
    used = [*folders, *masks, *_reserved(config)]
    for folder in dict.fromkeys([root, *sorted(folders)]):
        files = [folder / name for name in (HELD_OUT, *METADATA_FILES)]
        if folder in folders:
            captions = [path for path in entries(folder) if path.suffix.lower() in CAPTION_SUFFIXES]
            files += [folder / SUBJECT_FILE, *image_files(folder), *captions]
        splits = dict.fromkeys(entries(root), "a split other than train") if _is_split(root / TRAIN) else {}
        report_unused(folder, [*used, *files], splits)
    mask_folder = config.data.mask_data_dir
    if mask_folder and mask_folder.resolve() != root.resolve():
        report_unused_masks(mask_folder, masks)


def read_examples(subject: Subject, data: DataConfig) -> list[Example]:
    """Check the subject's images, and find their captions and masks.

    Raises:
        ImageError: no image can be read, or a mask cannot be used.
        ConfigError: a caption file cannot be read.
    """
    photos = check_images(image_files(subject.folder), subject.folder)
    masks = find_masks(photos, data)
    captions = read_captions([photo.path for photo in photos], subject.folder)
    return [
        replace(example, repeats=subject.repeats, mask=masks.get(example.photo.path))
        for example in captioned_examples(photos, captions, subject.prompt)
    ]


def captioned_examples(photos: Sequence[Photo], captions: Mapping[Path, str], prompt: str) -> list[Example]:
    """Return images with their captions; ``prompt`` stands in for missing captions."""
    return [Example(photo=photo, caption=captions.get(photo.path, prompt)) for photo in photos]


def _subject(folder: Path, prompts: dict[str, Any], triggers: Iterator[str]) -> Subject:
    """Build a subject from its prompts, or without prompts from its folder's name."""
    path = folder.resolve()
    name = path.parent.name if _is_split(path) else path.name
    match = re.fullmatch(r"(?:(\d{1,3})_)?(.+)", name)  # a year has four digits
    repeats, phrase = match.groups() if match else (None, "")
    noun = " ".join(re.findall(r"[^\W\d_]+", name))
    prompt, class_prompt = prompts.get("instance_prompt"), prompts.get("class_prompt")
    if not prompt and not class_prompt and noun:
        if repeats:
            prompt, class_prompt = phrase, phrase.partition(" ")[2] or None
        elif word := next(triggers, None):
            prompt, class_prompt = f"a photo of a {word} {noun}", f"a photo of a {noun}"
        logger.warning('No --instance_prompt: using "%s", from the name of %s.', prompt, folder)
    if not prompt:
        raise ConfigError(
            f"--instance_prompt is missing for {folder}: describe the images with a trigger word for the subject, "
            f'for example "a photo of a {TRIGGER_WORDS[0]} dog"; for several subjects, each in a subject.toml.'
        )
    return Subject(folder=folder, prompt=prompt, class_prompt=class_prompt, repeats=int(repeats or 1))


def _read_subject_file(folder: Path) -> dict[str, Any]:
    path = folder / SUBJECT_FILE
    if not path.is_file():
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}): correct or remove it.") from error
    known = ("instance_prompt", "class_prompt")
    for name in table.keys() - set(known):  # other keys, such as license, are ignored
        if match := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise ConfigError(f"{path} has the unknown key {name}: did you mean {match[0]!r}?")
    for name in known:
        if not isinstance(table.get(name, ""), str):
            raise ConfigError(f"{path} has {name} = {table[name]!r}: write a text.")
    return table
