"""The studio's state, independent of the page: a model, a library, training jobs and images, in one folder.

outputs/studio/
├── images/      generated images by day, with their requests as metadata
├── adapters/    the library
├── runs/        training jobs
├── uploads/     initial images and conditions
├── costs.json   estimates of training time and memory
├── favorites.json, presets.json, bases.json
└── cache/       uploads and downloads of browsers, removed after a day
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import tidy, writing
from hra_diffusion.resources import DATA, find_data
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.cache import new_folder, remove_old_files
from hra_diffusion.studio.engine.config import StudioConfig
from hra_diffusion.studio.engine.generation.conditions import find_control, make_condition
from hra_diffusion.studio.engine.generation.events import Generated, Loading, Progress, Queued
from hra_diffusion.studio.engine.generation.generation_queue import GenerationQueue, QueueItem
from hra_diffusion.studio.engine.generation.presets import Presets
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.grid import Grid
from hra_diffusion.studio.engine.images.image_store import ImageStore, SavedImage
from hra_diffusion.studio.engine.images.metadata import write_png
from hra_diffusion.studio.engine.images.restoring import restore_png
from hra_diffusion.studio.engine.models.base import Base
from hra_diffusion.studio.engine.models.bases import Bases
from hra_diffusion.studio.engine.models.model_worker import ModelWorker
from hra_diffusion.studio.engine.training.captions import ImageCaptions
from hra_diffusion.studio.engine.training.control_job import ControlJob
from hra_diffusion.studio.engine.training.estimates import Estimates
from hra_diffusion.studio.engine.training.finished_jobs import FinishedJobs
from hra_diffusion.studio.engine.training.job import Job
from hra_diffusion.studio.engine.training.jobs import TrainingJobs
from hra_diffusion.studio.engine.training.training_job import TrainingJob
from hra_diffusion.studio.engine.uploads import DECODING, Uploads, read_upload
from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.file import with_values


class Session:
    """The studio's operations, for the page, scripts and tests.

    Args:
        config: base, folder and limits.

    Raises:
        ModelError: the base is missing or incomplete.
        OutputError: the folder cannot be written.
    """

    def __init__(self, config: StudioConfig) -> None:
        self.config = config
        self.folder = config.folder.absolute()
        self.images, self.cache = self.folder / "images", self.folder / "cache"
        self.library = Library(
            self.folder / "adapters",
            DATA / "assets" / "adapters",
            runs=self.folder / "runs",
            cache=self.folder / "cache" / "interpolated",
        )
        self.uploads = Uploads(self.folder / "uploads")
        self.jobs = TrainingJobs(self.folder / "runs")
        self.estimates = Estimates(self.folder / "costs.json")
        self.image_captions = ImageCaptions(config)
        for folder in (self.images, self.cache, self.library.folder, self.uploads.folder, self.jobs.folder):
            with writing(self.folder):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        tidy(self.folder)
        for folder in (path for pattern in ("*/", "*/*/", "*/*/*/") for path in self.folder.glob(pattern)):
            tidy(folder)
        remove_old_files(self.cache)
        bases = Bases([find_data(base) for base in config.base], config.base_options, self.folder / "bases.json")
        self.worker = ModelWorker(
            bases,
            self.library,
            self.uploads,
            max_waiting=config.max_waiting,
            mixed_precision=job_defaults(bases.default).run.mixed_precision,
            placement=config.placement,
        )
        self.queue = GenerationQueue()
        self.presets = Presets(self.folder / "presets.json")
        self.image_store = ImageStore(self.images, self.folder / "favorites.json")
        self._finished = FinishedJobs(self.library)
        self.jobs.watch_queue()

    @property
    def default_request(self) -> GenerateRequest:
        """The page's first request."""
        size = self.worker.base.size
        if not self.worker.base.is_embedded:
            return GenerateRequest(
                prompt="a photo of a dog on the beach",
                width=size,
                height=size,
                guidance_scale=self.worker.base.guidance_scale,
            )
        return GenerateRequest(prompt="a 3d render of a cat on the beach", width=size, height=size, guidance_scale=4.0)

    def generate(self, request: GenerateRequest, client: str) -> Iterator[Loading | Queued | Progress | SavedImage]:
        """Generate and save images, yielding events; `stop` with the same client ends the request.

        Raises:
            HRAError: the request cannot be generated, or the queue is full.
        """
        with self.queue.adding([request], client) as (item,):
            yield from self._generate_item(request, item)

    def generate_grid(self, grid: Grid, client: str) -> Iterator[Loading | Queued | Progress | SavedImage]:
        """Generate the cells of a grid, row by row; errors as in `generate`."""
        requests = [cell for row in grid.rows for cell in row]
        for request in requests:
            self.worker.check(request)
        with self.queue.adding(requests[:1], client, images=len(requests)) as (item,):
            for request in requests:
                yield from self._generate_item(request, item)

    def generate_list(
        self, requests: Sequence[GenerateRequest], client: str
    ) -> Iterator[Loading | Queued | Progress | SavedImage]:
        """Generate the images of a list of prompts, one after the other; errors as in `generate`.

        Each is an item of the queue. The next one is submitted when the one before is done.
        """
        with self.queue.adding(requests, client) as items:
            for item in items:
                yield from self._generate_item(item.request, item)
                self.queue.remove_done(item)

    def _generate_item(
        self, request: GenerateRequest, item: QueueItem
    ) -> Iterator[Loading | Queued | Progress | SavedImage]:
        """Generate and save the images of a request for an item of the queue, unless it is canceled."""
        if item.canceled:
            return
        with self.queue.submitting(item) as stop:
            for event in self.worker.stream(request, stop):
                if isinstance(event, Generated):
                    yield self.image_store.add_image(event.image, event.request, self._base_name(event.request))
                else:
                    yield event

    def save_grid(self, image: Image.Image, request: GenerateRequest) -> Path:
        """Save the image of a grid as a download, with the grid's request as metadata."""
        path = new_folder(self.cache) / "grid.png"
        write_png(path, image, request, self._base_name(request))
        return path

    def _base_name(self, request: GenerateRequest) -> str:
        return request.base or self.worker.base.name

    def restore(self, png: str | Path | None) -> tuple[GenerateRequest, list[str]]:
        """Read the request of a PNG for this model and library: see `restoring.restore_png`; None is an error."""
        if not isinstance(png, str | Path):
            raise ConfigError("There is no image to read settings from: choose a PNG file.")
        return restore_png(Path(png), self.worker.bases, self.library, self.default_request)

    def with_condition(self, request: GenerateRequest, image: Path, annotator: str) -> GenerateRequest:
        """Return a request with the condition of its control.

        Args:
            request: a request with a control among its adapters.
            image: the uploaded control image.
            annotator: a key of `conditions.ANNOTATORS`.

        Raises:
            ImageError: the image is unreadable, or does not suit the annotator.
            ConfigError: the request has no control, or the annotator is unknown or needs a model.
        """
        control = find_control([self.library.entry(use.name) for use in request.adapters])
        if control is None:
            raise ConfigError(
                "There is no control for the image: choose a control among the adapters, or remove the image."
            )
        with DECODING:
            upload = read_upload(image, alpha=True)
            condition = make_condition(upload, control, annotator, (request.width, request.height))
        return replace(request, condition=self.uploads.save(condition))

    def annotate(self, adapters: Any, image: str | None, annotator: str, width: float, height: float) -> Path:
        """Return the file of a control image's condition; errors as in `with_condition`, or there is no image."""
        if not image:
            raise ConfigError("The control image is empty: upload an image, or draw a sketch.")
        request = GenerateRequest.from_json({"adapters": adapters or [], "width": width, "height": height})
        return self.uploads.path(self.with_condition(request, Path(image), annotator).condition or "")

    def with_start_image(self, request: GenerateRequest, image: Path) -> GenerateRequest:
        """Return a request with the start image of image to image.

        Raises:
            ImageError: the image is unreadable.
        """
        with DECODING:
            return replace(request, image=self.uploads.save(read_upload(image)))

    def truncated_prompts(self, request: GenerateRequest) -> dict[str, str]:
        """Return the ignored ends of a request's prompts, by "prompt" and "negative_prompt"; loads the model."""
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        ends = {
            name: self.worker.generator.truncated_text(text, request.prompt_syntax) for name, text in prompts.items()
        }
        return {name: end for name, end in ends.items() if end}

    def stop(self, client: str) -> None:
        """Stop the requests of a client, within a step."""
        self.queue.cancel_all(client)

    def train(self, job: TrainingJob) -> Job:
        """Start a training job; errors as in `TrainingJobs.start`."""
        self.library.new_entry_folder(job.name)  # refuses the name of an adapter
        base = self.worker.bases.get(job.base)
        return self.jobs.start(job, base.source, job_defaults(base, type(job)))

    def estimate(self, job: TrainingJob) -> dict[str, str]:
        """Measure a job's time and memory, and save the estimate; errors as in `TrainingJobs.dry_run`."""
        base, folder = self.worker.bases.get(job.base), new_folder(self.cache)
        try:
            report = self.jobs.dry_run(job, base.source, job_defaults(base, type(job)), folder)
            if not isinstance(job, ControlJob):
                self.estimates.save(base.source, report)
            return report
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def free_job_name(self, wanted: str) -> str:
        """Return the name, followed by a number if a job or an adapter has it."""
        return self.library.free_name(wanted, self.jobs.names())

    def job(self, name: str) -> Job:
        """Return a training job; the adapter of a finished one is added to the library.

        Raises:
            ConfigError: the name is unknown.
        """
        job = self.jobs.get(name)
        self._finished.add_adapter(job)
        return job

    def import_finished_jobs(self) -> None:
        """Add the adapters of all finished jobs to the library."""
        for job in self.jobs.all():
            self._finished.add_adapter(job)


def job_defaults(base: Base, kind: type[TrainingJob] = TrainingJob) -> TrainingConfig:
    """Return the settings with which training jobs of a kind start on a base."""
    defaults = kind.defaults(embedded=base.is_embedded, text_encoders_train=base.text_encoders_train)
    return with_values(defaults, base.flags)
