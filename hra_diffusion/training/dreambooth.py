"""DreamBooth: a rare word comes to mean a subject, learned from a few images (Ruiz et al., arXiv 2208.12242).

    loss = E‖prediction − target‖² on the subject's images + λ · the same on images of its class,

the second term being prior preservation: it keeps the class's word from turning into the subject.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path

from hra_diffusion.formats.files import check_writable
from hra_diffusion.formats.images import parse_color
from hra_diffusion.pipelines.components import size_multiple
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import number_of_steps, resolve
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.buckets import checked_resolution, sizes_for
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.data.captions import read_captions
from hra_diffusion.training.data.class_images import images_of_classes
from hra_diffusion.training.data.dataset import check_apart, file_digest, report_duplicates
from hra_diffusion.training.data.sources import SourceMaker
from hra_diffusion.training.data.subjects import Example, captioned, find_subjects, read_examples, subject_folders
from hra_diffusion.training.dry_run import describe_class_images, describe_images
from hra_diffusion.training.families import load
from hra_diffusion.training.families.textual_inversion import add_textual_inversion
from hra_diffusion.training.loop.trainer import Trainer
from hra_diffusion.training.outputs.resuming import identity
from hra_diffusion.training.outputs.validation import subject_validation
from hra_diffusion.training.run import Run
from hra_diffusion.training.setup import PRECISIONS, add_adapters, make_accelerator, make_trainer, trained_parts

logger = logging.getLogger(__name__)


class DreamBooth(Run):
    """A run, from its settings to its results. Making it checks everything and writes nothing.

    >>> run = DreamBooth(config)
    >>> for _ in run.draw_class_images(): ...
    >>> for record in run.steps(): ...
    >>> run.save()
    >>> for _ in run.draw_before_after(): ...

    Attributes:
        family: the model.
        subjects: who is to be learned.
        examples: their images, each with its caption.
        sizes: width and height in pixels at which each is trained on.
        class_images: the images of each class; empty without prior preservation.
        resolution: side of the training images in pixels.
    """

    config: DreamBoothConfig

    def __init__(self, config: DreamBoothConfig) -> None:
        """Check the settings, read the subject's images, load the model and put the adapter in.

        Raises:
            HRAError: something is wrong with the settings, the images, the model or the output folder.
        """
        self.subjects = find_subjects(config)
        config = resolve(config, self.subjects)
        folder = config.run.output_dir or Path()
        check_writable(folder)
        of_class = config.prior.class_data_dir
        root = config.data.instance_data_dir or Path()
        written = {"--output_dir": folder}
        if of_class and config.prior.with_prior_preservation:
            written["--class_data_dir"] = of_class
        check_apart([root, *subject_folders(root)], written)
        parse_color(config.data.background_color)
        self.examples = [example for subject in self.subjects for example in read_examples(subject, config.data)]
        report_duplicates([example.photo for example in self.examples])
        if config.data.cache_dir:
            check_writable(config.data.cache_dir, "--cache_dir")
        if config.prior.with_prior_preservation and of_class and not of_class.is_dir():
            check_writable(of_class, "--class_data_dir")
            logger.warning("There is no folder %s yet: images of the class will be drawn into it.", of_class)
        accelerator = make_accelerator(config.run)
        self.family = load(config.model, PRECISIONS[config.run.mixed_precision])
        pipe = self.family.pipe.to(accelerator.device)
        self.resolution = checked_resolution(config.data.resolution, pipe)
        a_pass = sum(example.repeats for example in self.examples)
        total_steps = number_of_steps(config.run, a_pass, accelerator.num_processes)
        config = with_values(config, {"resolution": self.resolution, "max_train_steps": total_steps})
        photos = [example.photo.size for example in self.examples]
        self.sizes = sizes_for(photos, self.resolution, size_multiple(pipe), config.data.aspect_ratio_buckets)
        add_adapters(self.family, config.adapter, config.model, config.run)
        if config.adapter.train_text_encoder_ti:
            captions = {example.caption for example in self.examples}
            add_textual_inversion(self.family, [subject.prompt for subject in self.subjects], captions, config.adapter)
        self._report_cut_captions()
        self.class_images = images_of_classes(config, self.subjects, folder, pipe)
        for images in self.class_images:
            if not all(path.exists() for path in images.files):
                check_writable(images.folder, "--class_data_dir")
        super().__init__(
            config=config,
            accelerator=accelerator,
            pipe=pipe,
            portrait=subject_validation(self.subjects, config.validation, self.resolution, config.run.seed),
            identity=identity(config, self._digests(config.data.instance_data_dir), pipe, accelerator.num_processes),
        )

    @property
    def images_per_step(self) -> int:
        """Images that a step learns from, on all devices together."""
        return super().images_per_step * (2 if self.class_images else 1)

    @property
    def summary(self) -> str:
        """What will be trained, in one line."""
        prompts = " and ".join(f'"{subject.prompt}"' for subject in self.subjects)
        shapes = len(set(self.sizes))
        return (
            f"{prompts} from {len(self.examples)} images of {self.resolution} px"
            f"{f' in {shapes} shapes' if shapes > 1 else ''}: {self.number_of_parameters:,} parameters in "
            f"{' and '.join(trained_parts(self.pipe))}, {self.total_steps} steps"
        )

    def material(self) -> Iterator[tuple[str, str]]:
        """See :class:`Run`."""
        yield "subjects", " and ".join(f'"{subject.prompt}"' for subject in self.subjects)
        for line in describe_images(self.examples, self.sizes, self.config.data.center_crop):
            yield "image", line
        for images in self.class_images:
            yield "class", describe_class_images(images)

    def draw_class_images(self) -> Iterator[int]:
        """Draw missing images of the class; yields how many there are."""
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            before = 0
            for images in self.class_images:
                for done in images.draw_missing():
                    yield before + done
                before += len(images.files)

    def make_trainer(self, *, rehearsal: bool) -> Trainer:
        """Encode the images and connect the parts; with a cache, other processes take what the first one made.

        In a rehearsal the subject's images stand in for those of the class, which may not be drawn yet.
        """
        cache = Cache(None if rehearsal else self.config.data.cache_dir)
        maker = SourceMaker(
            family=self.family,
            data=self.config.data,
            text_encoder_trains=self.config.adapter.text_encoder_trains,
            seed=self.config.run.seed,
            cache=cache,
        )
        of_class = self.examples if rehearsal else list(self._examples_of_classes())
        with self.accelerator.main_process_first() if cache.folder else nullcontext():
            sources = [maker.make("instance", zip(self.examples, self.sizes, strict=True))]
            if self.class_images:
                in_all_sizes = product(of_class, sorted(set(self.sizes)))
                prior = self.config.prior
                sources.append(maker.make("class", in_all_sizes, prior.prior_loss_weight, prior.prior_target == "base"))
        return make_trainer(sources, self.family, self.accelerator, self.config, self.total_steps)

    def _examples_of_classes(self) -> Iterator[Example]:
        for images in self.class_images:
            yield from captioned(images.read(), images.folder, images.prompt)

    def _report_cut_captions(self) -> None:
        for caption in dict.fromkeys(example.caption for example in self.examples):
            if cut := self.family.cut_off(caption):
                logger.warning('The caption "%s" is too long for the model, which does not read "%s".', caption, cut)

    def _digests(self, root: Path | None) -> dict[str, str]:
        """Digest each image that is trained on, by name."""
        digests = {
            f"instance {example.photo.path.relative_to(root or Path())}": example.digest for example in self.examples
        }
        for images in self.class_images:
            own = read_captions(images.own, images.folder)
            told = {path: own.get(path, images.prompt) for path in images.own}
            digests |= {f"class {images.prompt} {path.name}": file_digest(path) + text for path, text in told.items()}
            digests[f"class {images.prompt}"] = str(images.count)
        return digests
