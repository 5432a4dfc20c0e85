"""Pairs of an image and its condition, from a folder or a dataset, checked before the first step.

    scenes/1.jpg, scenes/1.txt, scenes/conditioning_images/1.png
    scenes/metadata.jsonl      {"image": "1.jpg", "conditioning_image": "edges/1.png", "text": "a cat"}, one a line

One geometry holds for both: a condition is cropped and mirrored as its image is, and its colors are left alone. A
condition that is not there is annotated on each view of the image, before its colors vary.
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

from hra_diffusion.control.annotators import Annotator, Given
from hra_diffusion.control.conditions import annotate, read_condition, read_image_for
from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats.images import Color, check_same_shape, parse_color, read_layers
from hra_diffusion.text import shorten
from hra_diffusion.training.config import PairsConfig
from hra_diffusion.training.data.buckets import Size
from hra_diffusion.training.data.captions import read_beside, read_captions, read_json_lines
from hra_diffusion.training.data.crops import covering_size, views
from hra_diffusion.training.data.dataset import ENDINGS, Photo, check_images, file_digest, image_files
from hra_diffusion.training.data.subjects import Example

logger = logging.getLogger(__name__)

_COLUMNS = ("image_column", "conditioning_image_column", "caption_column")
CONDITIONS_FOLDER, METADATA = "conditioning_images", "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with its caption, and the file of its condition, if there is one."""

    example: Example
    condition: Path | None = None
    row: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the folder's table says of it."""

    @property
    def digest(self) -> str:
        """Digest everything that training sees of it."""
        return self.example.digest + (file_digest(self.condition) if self.condition else "")

    def whole_condition(self, annotator: Annotator, background: Color) -> Image.Image:
        """Read the condition that is there, or what the annotator is to make one of."""
        if self.condition:
            return read_condition(self.condition, annotator)
        return read_image_for(self.example.photo.path, annotator, background)


def read_pairs(folder: Path, config: PairsConfig) -> list[Pair]:
    """Read the pairs of a folder, and check them.

    Raises:
        ImageError: an image or a condition is missing, cannot be read, or has another shape than the other.
        ConfigError: a caption is missing, or the metadata cannot be read.
    """
    table = _read_metadata(folder, config)
    present = image_files(folder)
    idle = [f"--{name}" for name in _COLUMNS if getattr(config, name) != getattr(PairsConfig, name)]
    if idle and not table:
        logger.warning("%s has no %s, where %s would count.", folder, METADATA, " and ".join(idle))
    files = list(table) or present
    left_out = set(present).difference(files)
    if images := sorted(path.name for path in left_out if path.suffix.lower() in ENDINGS):
        logger.warning("%s does not name %s, which are left out.", folder / METADATA, shorten(images))
    files = files[: config.max_train_samples]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ImageError(f"{folder / METADATA} names images that are not there: {shorten(missing)}.")
    photos = check_images(files, folder)
    paths = [photo.path for photo in photos]
    told = {path: row[config.caption_column] for path, row in table.items() if row.get(config.caption_column)}
    captions = read_beside(paths) | told if table else read_captions(paths, folder)
    if missing := [photo.path.name for photo in photos if photo.path not in captions]:
        raise ConfigError(
            f"Images of {folder} have no caption: {shorten(missing)}. Write it into a text file beside each, or into "
            f"{METADATA} as {config.caption_column!r}."
        )
    conditions = _conditions(photos, folder, table, config)
    return [
        Pair(
            example=Example(photo=photo, caption=captions[photo.path]),
            condition=conditions.get(photo.path),
            row=table.get(photo.path, {}),
        )
        for photo in photos
    ]


def _read_metadata(folder: Path, config: PairsConfig) -> dict[Path, dict[str, Any]]:
    """Read the rows of a folder's metadata.jsonl by their images; nothing where there is none."""
    path = folder / METADATA
    if not path.is_file():
        return {}
    rows: dict[Path, dict[str, Any]] = {}
    for number, row in read_json_lines(path):
        name = row.get(config.image_column) or row.get("file_name")
        if not isinstance(name, str):
            raise ConfigError(f"{path}, line {number}, names no image as {config.image_column} or file_name: {row}")
        for column in (config.caption_column, config.conditioning_image_column):
            if not isinstance(row.get(column, ""), str):
                raise ConfigError(f"{path}, line {number}, has {column} = {row[column]!r}: write a text.")
        rows[folder / name] = row
    return rows


def _conditions(
    photos: Sequence[Photo], folder: Path, table: Mapping[Path, Mapping[str, Any]], config: PairsConfig
) -> dict[Path, Path]:
    """Find the conditions of images: of all of them, or there are none."""
    column = config.conditioning_image_column
    named = {path: folder / row[column] for path, row in table.items() if row.get(column)}
    beside = folder / CONDITIONS_FOLDER
    if not named and beside.is_dir():
        by_name: dict[str, Path] = {}
        for path in image_files(beside):
            if path.stem in by_name:
                raise ImageError(f"{by_name[path.stem]} and {path.name} are two conditions of one image: keep one.")
            by_name[path.stem] = path
        if unused := by_name.keys() - {photo.path.stem for photo in photos}:
            logger.warning("%s has conditions of images that are not there: %s.", beside, shorten(sorted(unused)))
        named = {photo.path: by_name[photo.path.stem] for photo in photos if photo.path.stem in by_name}
    if not named and not beside.is_dir():
        return {}
    lonely = [photo.path.name for photo in photos if not (photo.path in named and named[photo.path].is_file())]
    if lonely:
        raise ImageError(f"Images of {folder} have no condition, though others have: {shorten(lonely)}. Add them.")
    for photo in photos:
        condition = named[photo.path]
        check_same_shape(f"condition {condition}", read_layers(condition).colors.size, photo.size)
    return named


def check_conditions(pairs: Sequence[Pair], annotator: Annotator, config: PairsConfig) -> None:
    """Make sure that each pair has a condition, where not every image has one.

    Raises:
        ImageError: one has none.
    """
    for pair in pairs if not annotator.reads_any_image else ():
        whole = pair.whole_condition(annotator, parse_color(config.background_color))
        if not pair.condition:
            annotate(pair.example.photo.path, annotator, whole)


def conditions_of(pair: Pair, size: Size, annotator: Annotator, config: PairsConfig, seed: int) -> list[Tensor]:
    """Make the condition of each view of a pair's image, uint8 (3, height, width); tints of a crop share theirs."""
    given = pair.condition is not None
    whole = pair.whole_condition(annotator, parse_color(config.background_color))
    resampling = Image.Resampling.NEAREST if given and annotator.labels else Image.Resampling.LANCZOS
    covering = whole.resize(covering_size(pair.example.photo.size, size), resampling)
    shown = views(pair.example.photo.size, size, config, seed, pair.example.photo.digest)
    maker, path = Given() if given else annotator, pair.example.photo.path
    plain = [replace(view, tint=()) for view in shown]
    made = {view: np.array(annotate(path, maker, view.crop(covering, size))) for view in dict.fromkeys(plain)}
    conditions = {view: torch.from_numpy(pixels).permute(2, 0, 1) for view, pixels in made.items()}
    return [conditions[view] for view in plain]


def import_dataset(config: PairsConfig, folder: Path) -> Path:
    """Write the pairs of a dataset of the library datasets into a folder of pairs, once; returns its folder.

    Another content, number or choice of columns has another folder.

    Raises:
        ConfigError: the library is not installed, or the dataset has no such columns.
    """
    from hra_diffusion.formats.files import replacing

    dataset = _open(config)
    columns = (config.image_column, config.conditioning_image_column, config.caption_column)
    told = (config.dataset_name, config.dataset_config_name, config.max_train_samples, columns)
    key = repr((*told, _fingerprint(dataset, config)))
    place = folder / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    if not place.is_dir():
        with replacing(place) as new:
            rows = list(_rows(dataset, config, new))
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (new / METADATA).write_text(lines, encoding="utf-8")
    return place


def _fingerprint(dataset: Any, config: PairsConfig) -> object:
    """Return what differs once the content of a dataset does; of tar files, which do not tell, the size and time."""
    tars = [(path, Path(path).stat()) for path in sorted(glob.glob(str(config.dataset_name)))]
    return getattr(dataset, "_fingerprint", [(path, about.st_size, about.st_mtime_ns) for path, about in tars])


def _rows(dataset: Any, config: PairsConfig, folder: Path) -> Iterator[dict[str, str]]:
    columns = {"image": config.image_column, "conditioning_image": config.conditioning_image_column}
    for number, row in enumerate(dataset):
        if number == config.max_train_samples:
            return
        if config.image_column not in row or config.caption_column not in row:
            raise ConfigError(
                f"The dataset {config.dataset_name} has the columns {', '.join(row)}: say with --image_column and "
                "--caption_column which of them are the images and the captions."
            )
        text = row[config.caption_column]
        named = {config.caption_column: (text.decode() if isinstance(text, bytes) else str(text)).strip()}
        for kind, column in columns.items():
            if row.get(column) is not None:
                path = (
                    folder / CONDITIONS_FOLDER / f"{number:06}.png" if kind != "image" else folder / f"{number:06}.png"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                row[column].save(path)
                named[column] = str(path.relative_to(folder))
        yield named


def _open(config: PairsConfig) -> Any:
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
            f"The dataset {name!r} cannot be loaded ({error}): name a folder, tar files, or one of the hub."
        ) from error
