"""The studio's state, without any page: a model, a library, runs and images, all in one folder.

outputs/studio/
├── images/    what was drawn, by day, each PNG with its request in it
├── adapters/    the library
├── runs/        lessons
├── uploads/     images to start from, and conditions
├── costs.json   what teaching costs here, once it was measured
└── cache/       what browsers up- and download, removed after a day, or when the studio opens then
"""

import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hra_diffusion.errors import ConfigError, HRAError
from hra_diffusion.formats.files import write_file, writing
from hra_diffusion.studio.engine.base import read_base
from hra_diffusion.studio.engine.conditions import annotated, control_among
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.costs import Costs
from hra_diffusion.studio.engine.events import Drawn, Progress, Reading, Waiting
from hra_diffusion.studio.engine.exporting import new_folder
from hra_diffusion.studio.engine.grid import Grid
from hra_diffusion.studio.engine.jobs import Run, Runs, Status
from hra_diffusion.studio.engine.library import Library
from hra_diffusion.studio.engine.metadata import png_info, restored
from hra_diffusion.studio.engine.model_worker import Model
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.training_job import TrainingJob
from hra_diffusion.studio.engine.uploads import Uploads, read_upload
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import EMBEDDED_BASE, PROJECT, embedded_defaults, find_model

ADOPTED = "adopted.txt"
DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Saved:
    """An image is done, and its file there."""

    request: GenerateRequest
    image: Image.Image
    path: Path


class Session:
    """Everything that a page, a script or a test does with the studio.

    Args:
        config: base, folder and limits.

    Raises:
        ModelError: there is no such base, or it is incomplete.
        OutputError: the folder cannot be written.
    """

    def __init__(self, config: StudioConfig) -> None:
        self.config = config
        self.folder = config.folder.absolute()
        self.images, self.cache = self.folder / "images", self.folder / "cache"
        self.library = Library(self.folder / "adapters", PROJECT / "assets" / "adapters")
        self.uploads = Uploads(self.folder / "uploads")
        self.runs = Runs(self.folder / "runs")
        self.costs = Costs(self.folder / "costs.json")
        for folder in (self.images, self.cache, self.library.folder, self.uploads.folder, self.runs.folder):
            with writing(self.folder):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        _remove_old(self.cache)
        base = find_model(config.base)
        self.embedded = Path(base).exists() and Path(base).resolve() == EMBEDDED_BASE
        self.model = Model(read_base(base), self.library, self.uploads, max_waiting=config.max_waiting)
        self.training_defaults = (
            embedded_defaults(DreamBoothConfig, "embedded.toml") if self.embedded else DreamBoothConfig()
        )
        self._flags: dict[str, set[threading.Event]] = defaultdict(set)
        self._guard = threading.Lock()

    @property
    def default_request(self) -> GenerateRequest:
        """What the page begins with."""
        size = self.model.base.size
        if not self.embedded:
            return GenerateRequest(prompt="a photo of a dog on the beach", width=size, height=size)
        return GenerateRequest(prompt="a 3d render of a cat on the beach", width=size, height=size, guidance_scale=4.0)

    def draw(self, request: GenerateRequest, client: str) -> Iterator[Reading | Waiting | Progress | Saved]:
        """Draw images, each in a file when it is told of; `stop` with the same client ends it.

        Raises:
            HRAError: it cannot be drawn, or too many requests wait.
        """
        with self.stoppable(client) as stop:
            for event in self.model.draw(request, stop):
                if isinstance(event, Drawn):
                    path = _image_path(self.images, event.request)
                    info = png_info(event.request, self.model.base.name)
                    write_file(path, partial(_save, event.image, info))
                    yield Saved(request=event.request, image=event.image, path=path)
                else:
                    yield event

    def draw_grid(self, grid: Grid, client: str) -> Iterator[Reading | Waiting | Progress | Saved]:
        """Draw the cells of a grid, row by row; errors as in `draw`."""
        with self.stoppable(client) as stop:
            for request in (cell for row in grid.rows for cell in row):
                if stop.is_set():
                    return
                yield from self.draw(request, client)

    def save_sheet(self, sheet: Image.Image, request: GenerateRequest) -> Path:
        """Save a sheet, with the request that its cells vary, among the downloads."""
        path = new_folder(self.cache) / "grid.png"
        write_file(path, partial(_save, sheet, png_info(request, self.model.base.name)))
        return path

    def restore(self, png: Path) -> tuple[GenerateRequest, list[str]]:
        """Read how an image was drawn, as far as it can be drawn here: see `metadata.restored`."""
        return restored(png, self.model.base, self.library, self.default_request)

    def following(self, request: GenerateRequest, image: Path, annotator: str) -> GenerateRequest:
        """Return a request with what its control is to follow.

        Args:
            request: which adapters, a control among them, and which size.
            image: an upload.
            annotator: a key of `conditions.ANNOTATORS`.

        Raises:
            ImageError: the image cannot be used.
            ConfigError: there is no control; or no such annotator, or it cannot work here.
        """
        control = control_among([self.library.entry(use.name) for use in request.adapters])
        if control is None:
            raise ConfigError("Nothing follows the image: choose a control, a card that says so, or remove the image.")
        read = read_upload(image, transparent=True)
        condition = annotated(read, control, annotator, (request.width, request.height))
        return replace(request, condition=self.uploads.keep(condition))

    def stop(self, client: str) -> None:
        """End what a client is having drawn, within a step."""
        with self._guard:
            for flag in self._flags.get(client, ()):
                flag.set()

    @contextmanager
    def stoppable(self, client: str) -> Iterator[threading.Event]:
        """A flag that `stop` sets."""
        flag = threading.Event()
        with self._guard:
            self._flags[client].add(flag)
        try:
            yield flag
        finally:
            with self._guard:
                self._flags[client].discard(flag)
                if not self._flags[client]:
                    del self._flags[client]

    def teach(self, lesson: TrainingJob) -> Run:
        """Start a lesson; errors as in `Runs.start`."""
        self.library.free_place(lesson.name)
        return self.runs.start(lesson, self.model.base.source, self.training_defaults)

    def estimate(self, lesson: TrainingJob) -> dict[str, str]:
        """Measure what a lesson would cost, and keep it for the presets; errors as in `Runs.estimate`."""
        folder = new_folder(self.cache)
        try:
            told = self.runs.estimate(lesson, self.model.base.source, self.training_defaults, folder)
            self.costs.keep(self.model.base.source, told)
            return told
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def look(self, name: str) -> Run:
        """Look at a run; what it taught is in the library from when it has ended.

        Raises:
            ConfigError: there is no such run.
        """
        run = self.runs.get(name)
        if run.status is Status.FINISHED:
            self.adopt(run)
        return run

    def adopt_finished(self) -> None:
        """Bring what runs have taught while nobody looked into the library."""
        for run in self.runs.all():
            if run.status is Status.FINISHED:
                self.adopt(run)

    def adopt(self, run: Run) -> None:
        """Add what a run taught to the library, once."""
        with self._guard:
            mark = run.folder / ADOPTED
            if mark.exists():
                return
            samples = [path for _, path in run.samples()]
            try:
                entry = self.library.add(run.folder, self.library.free_name(run.name), next(iter(samples[-1:]), None))
            except HRAError:
                return  # the run says itself what is wrong with it
            write_file(mark, lambda path: path.write_text(entry.name, encoding="utf-8"))


def _remove_old(cache: Path) -> None:
    """Remove what nobody fetches any more: gradio forgets what it has served when it is ended from outside."""
    for path in sorted(cache.rglob("*"), reverse=True):  # what is in a folder before the folder
        with suppress(OSError):  # a folder that is not empty
            if path.is_dir():
                path.rmdir()
            elif time.time() - path.lstat().st_ctime > DAY:
                path.unlink()


def _save(image: Image.Image, info: Any, path: Path) -> None:
    image.save(path, pnginfo=info)


def _image_path(folder: Path, request: GenerateRequest) -> Path:
    """Name a new image's file by day, time and seed."""
    now = time.time_ns()
    day, clock = time.strftime("%Y-%m-%d %H%M%S", time.localtime(now / 1e9)).split()
    return folder / day / f"{clock}-{now % 10**9:09d}-seed{request.seed}.png"
