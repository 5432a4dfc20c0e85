"""Pairs of an image and its condition, read from a folder or a dataset and checked before the first step.

    scenes/1.jpg, scenes/1.txt, scenes/conditioning_images/1.png
    scenes/metadata.jsonl      {"image": "1.jpg", "conditioning_image": "edges/1.png", "text": "a cat"}, one a line

A condition is cropped and flipped like its image, without color jitter. A missing condition is annotated on each crop
of the image, before its color jitter.
"""

import glob
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hra_diffusion.control.annotators import Annotator, Canny, Given, Scribble, SoftEdge
from hra_diffusion.control.conditions import annotate, read_condition, read_control_image
from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats.images import Color, check_same_shape, parse_color, read_layers
from hra_diffusion.text import shorten
from hra_diffusion.training.config import PairsConfig
from hra_diffusion.training.data.buckets import Size
from hra_diffusion.training.data.captions import (
    CAPTION_SUFFIXES,
    METADATA_FILES,
    read_caption_files,
    read_captions,
    read_json_lines,
)
from hra_diffusion.training.data.crops import augmented_crops, covering_size
from hra_diffusion.training.data.dataset import Photo, check_images, file_digest
from hra_diffusion.training.data.inventory import HELD_OUT, entries, image_files, report_unused
from hra_diffusion.training.data.subjects import Example

logger = logging.getLogger(__name__)

_COLUMNS = ("image_column", "conditioning_image_column", "caption_column")
CONDITIONS_FOLDERS = ("conditioning_images", "conditions")
"""Names of the sub-folder of conditions; the first that exists is used."""
METADATA = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with its caption, and the file of its condition if it exists."""

    example: Example
    condition: Path | None = None
    row: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its row of metadata.jsonl."""

    @property
    def digest(self) -> str:
        """Digest of the image, caption and condition."""
        return self.example.digest + (file_digest(self.condition) if self.condition else "")

    def read_condition_or_image(self, annotator: Annotator, background: Color) -> Image.Image:
        """Read the condition; if it does not exist, the image for the annotator."""
        if self.condition:
            return read_condition(self.condition, annotator)
        return read_control_image(self.example.photo.path, annotator, background)


def read_pairs(folder: Path, config: PairsConfig) -> list[Pair]:
    """Read and check the pairs of a folder.

    Raises:
        ImageError: an image or a condition is missing or cannot be read, or their aspect ratios differ.
        ConfigError: a caption is missing, or the metadata cannot be read.
    """
    table = _read_metadata(folder, config)
    unused = [f"--{name}" for name in _COLUMNS if getattr(config, name) != getattr(PairsConfig, name)]
    if unused and not table:
        logger.warning("%s has no effect, because %s has no %s.", " and ".join(unused), folder, METADATA)
    all_files = list(table) or image_files(folder)
    files = all_files[: config.max_train_samples]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ImageError(
            f"{folder / METADATA} names images that do not exist: {shorten(missing)}. Add them or remove their lines."
        )
    photos = check_images(files, folder)
    paths = [photo.path for photo in photos]
    in_table = {path: row[config.caption_column] for path, row in table.items() if row.get(config.caption_column)}
    captions = read_caption_files(paths) | in_table if table else read_captions(paths, folder)
    if missing := [photo.path.name for photo in photos if photo.path not in captions]:
        raise ConfigError(
            f"Images of {folder} have no caption: {shorten(missing)}. Write it into a text file beside each image, or "
            f"into {METADATA} as {config.caption_column!r}."
        )
    conditions = _conditions(photos, folder, table, config)
    _report_unused_files(folder, [*all_files, *conditions.values()], table)
    return [
        Pair(
            example=Example(photo=photo, caption=captions[photo.path]),
            condition=conditions.get(photo.path),
            row=table.get(photo.path, {}),
        )
        for photo in photos
    ]


def conditions_folder(folder: Path) -> Path:
    """Return the sub-folder of conditions, whether or not it exists."""
    folders = [folder / name for name in CONDITIONS_FOLDERS]
    return next((path for path in folders if path.is_dir()), folders[0])


def _report_unused_files(folder: Path, files: Sequence[Path], table: Mapping[Path, Any]) -> None:
    """Report the unused files of a folder of pairs, given its images and conditions."""
    captions = [path for path in entries(folder) if path.suffix.lower() in CAPTION_SUFFIXES]
    in_folders = [folder / path.relative_to(folder).parts[0] for path in files if path.is_relative_to(folder)]
    others = [folder / name for name in (HELD_OUT, "masks", *METADATA_FILES)]
    unnamed = dict.fromkeys(image_files(folder), f"{METADATA} does not name them") if table else {}
    report_unused(folder, [*files, *in_folders, *captions, *others], unnamed)


def _read_metadata(folder: Path, config: PairsConfig) -> dict[Path, dict[str, Any]]:
    """Read the rows of a folder's metadata.jsonl by their images; without that file, of the one above.

    Without either, return an empty dictionary.
    """
    path = next((path for path in (folder / METADATA, folder.parent / METADATA) if path.is_file()), None)
    if path is None:
        return {}
    is_above = path.parent != folder
    rows: dict[Path, dict[str, Any]] = {}
    for number, row in read_json_lines(path):
        name = row.get(config.image_column) or row.get("file_name")
        if is_above and not (isinstance(name, str) and (path.parent / name).parent == folder):
            continue
        if not isinstance(name, str):
            raise ConfigError(f"{path}, line {number}, names no image as {config.image_column} or file_name: {row}")
        for column in (config.caption_column, config.conditioning_image_column):
            if not isinstance(row.get(column, ""), str):
                raise ConfigError(f"{path}, line {number}, has {column} = {row[column]!r}: write a text.")
        if condition := row.get(config.conditioning_image_column):
            row[config.conditioning_image_column] = str(path.parent / condition)
        rows[path.parent / name] = row
    return rows


def _conditions(
    photos: Sequence[Photo], folder: Path, table: Mapping[Path, Mapping[str, Any]], config: PairsConfig
) -> dict[Path, Path]:
    """Find the conditions of all images; without any condition, return an empty dictionary."""
    column = config.conditioning_image_column
    conditions = {path: folder / row[column] for path, row in table.items() if row.get(column)}
    subfolder = conditions_folder(folder)
    if not conditions and subfolder.is_dir():
        by_stem: dict[str, Path] = {}
        for path in image_files(subfolder):
            if path.stem in by_stem:
                raise ImageError(f"{by_stem[path.stem]} and {path.name} are two conditions of one image: keep one.")
            by_stem[path.stem] = path
        if unused := by_stem.keys() - {photo.path.stem for photo in photos}:
            logger.warning("%s has conditions of images that do not exist: %s.", subfolder, shorten(sorted(unused)))
        conditions = {photo.path: by_stem[photo.path.stem] for photo in photos if photo.path.stem in by_stem}
    if not conditions and not subfolder.is_dir():
        return {}
    missing = [
        photo.path.name for photo in photos if not (photo.path in conditions and conditions[photo.path].is_file())
    ]
    if missing:
        raise ImageError(f"Some images of {folder} have no condition: {shorten(missing)}. Add their conditions.")
    for photo in photos:
        condition = conditions[photo.path]
        check_same_shape(f"condition {condition}", read_layers(condition).colors.size, photo.size)
    return conditions


def check_conditions(pairs: Sequence[Pair], annotator: Annotator, config: PairsConfig) -> None:
    """Check that the annotator finds a condition in each image, such as a face; edges are in every image.

    Given conditions with colors are reported if the annotator makes edges.

    Raises:
        ImageError: the annotator finds none in an image.
    """
    if isinstance(annotator, Canny | Scribble | SoftEdge):
        files = [pair.condition for pair in pairs if pair.condition]
        if colored := [path.name for path in files if _has_colors(read_condition(path, annotator))]:
            logger.warning(
                "--annotator is %s, but these conditions have colors, unlike its own: %s. Images to generate from are "
                "annotated by %s; for conditions of another kind leave --annotator out.",
                annotator.name,
                shorten(colored),
                annotator.name,
            )
    for pair in pairs if not annotator.reads_any_image else ():
        image = pair.read_condition_or_image(annotator, parse_color(config.background_color))
        if not pair.condition:
            annotate(pair.example.photo.path, annotator, image)


def _has_colors(condition: Image.Image) -> bool:
    """Whether more than 1 % of the pixels are not gray, up to the artifacts of lossy compression."""
    channels = np.asarray(condition.convert("RGB").resize((64, 64), Image.Resampling.BOX), np.int16)
    return float((np.ptp(channels, axis=2) > 32).mean()) > 0.01


def make_crop_conditions(pair: Pair, size: Size, annotator: Annotator, config: PairsConfig, seed: int) -> list[Tensor]:
    """Return the condition of each crop of a pair's image: uint8, shape (3, height, width).

    Crops that differ only in their color jitter share a condition.
    """
    given = pair.condition is not None
    image = pair.read_condition_or_image(annotator, parse_color(config.background_color))
    resampling = Image.Resampling.NEAREST if given and annotator.labels else Image.Resampling.LANCZOS
    covering = image.resize(covering_size(pair.example.photo.size, size), resampling)
    crops = augmented_crops(pair.example.photo.size, size, config, seed, pair.example.photo.digest)
    plain = [replace(crop, jitter=()) for crop in crops]
    crop_annotator, path = Given() if given else annotator, pair.example.photo.path
    annotated = {crop: annotate(path, crop_annotator, crop.cut(covering, size)) for crop in dict.fromkeys(plain)}
    conditions = {crop: torch.from_numpy(np.array(image)).permute(2, 0, 1) for crop, image in annotated.items()}
    return [conditions[crop] for crop in plain]


def import_dataset(config: PairsConfig, folder: Path) -> Path:
    """Write the pairs of a Hugging Face dataset into a sub-folder, once, and return the sub-folder.

    Its name is a digest of the dataset's content, the number of samples and the columns.

    Raises:
        ConfigError: the library datasets is not installed, or the dataset has no such columns.
    """
    from hra_diffusion.formats.files import replacing

    dataset = _open_dataset(config)
    columns = (config.image_column, config.conditioning_image_column, config.caption_column)
    settings = (config.dataset_name, config.dataset_config_name, config.max_train_samples, columns)
    key = repr((*settings, _fingerprint(dataset, config)))
    destination = folder / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    if not destination.is_dir():
        with replacing(destination) as new:
            rows = list(_write_images(dataset, config, new))
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (new / METADATA).write_text(lines, encoding="utf-8")
    return destination


def _fingerprint(dataset: Any, config: PairsConfig) -> object:
    """Return the dataset's fingerprint; tar files have none, so return their sizes and times."""
    tars = [(path, Path(path).stat()) for path in sorted(glob.glob(str(config.dataset_name)))]
    return getattr(dataset, "_fingerprint", [(path, stat.st_size, stat.st_mtime_ns) for path, stat in tars])


def _write_images(dataset: Any, config: PairsConfig, folder: Path) -> Iterator[dict[str, str]]:
    """Write the images of a dataset, and yield the row of metadata.jsonl of each pair."""
    columns = {"image": config.image_column, "conditioning_image": config.conditioning_image_column}
    for number, row in enumerate(dataset):
        if number == config.max_train_samples:
            return
        if config.image_column not in row or config.caption_column not in row:
            raise ConfigError(
                f"The dataset {config.dataset_name} has the columns {', '.join(row)}: name those of the images and "
                "captions with --image_column and --caption_column."
            )
        text = row[config.caption_column]
        metadata = {config.caption_column: (text.decode() if isinstance(text, bytes) else str(text)).strip()}
        for kind, column in columns.items():
            if row.get(column) is not None:
                path = (folder if kind == "image" else folder / CONDITIONS_FOLDERS[0]) / f"{number:06}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                row[column].save(path)
                metadata[column] = str(path.relative_to(folder))
        yield metadata


def _open_dataset(config: PairsConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "--dataset_name needs the library datasets: pip install 'hra-diffusion[datasets]'."
        ) from error
    name = str(config.dataset_name)
    try:
        if name.endswith(".tar"):
            return datasets.load_dataset("webdataset", data_files={"train": name}, split="train", streaming=True)
        if (Path(name) / "dataset_info.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
            return loaded["train"] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(name, config.dataset_config_name, split="train")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"The dataset {name!r} cannot be loaded ({error}): name a folder, tar files, or a dataset on the hub."
        ) from error
