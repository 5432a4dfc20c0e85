"""Images for the metrics of an adapter: the same prompts and seeds with the adapter and without."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from hra_diffusion.metrics.vocabulary import Vocabulary
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.pipelines.kinds import call_options
from hra_diffusion.pipelines.models import images_of
from hra_diffusion.pipelines.protocol import Pipeline

PHOTO_CONTEXTS = (
    "in the snow",
    "on the beach",
    "in a forest",
    "on a wooden floor",
    "with a city in the background",
    "on a cobblestone street",
    "on a purple rug",
    "with mountains in the background",
)
PHOTO_UNRELATED = (
    "a photo of a house by a lake",
    "a photo of a bowl of fruit on a table",
    "a photo of a bicycle leaning on a wall",
    "a photo of a woman reading a book",
)


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Prompts, seeds and settings, in three groups: the subject in several contexts, its class, unrelated prompts."""

    instance_prompt: str
    class_prompt: str | None
    """Without it there are no class images, and captions keep the trigger word."""
    contexts: Mapping[str, str]
    """Words after the instance prompt, by the judge's label of the background."""
    unrelated: Sequence[str]
    seeds: Sequence[int]
    """Seeds of every prompt."""
    resolution: int
    """Side of the images in pixels."""
    num_inference_steps: int
    guidance_scale: float
    batch_size: int = 4
    """Images generated at once; with 1 they equal those of ``hra-diffusion generate`` bit for bit."""

    @property
    def prompts(self) -> dict[str, list[str]]:
        """The prompts of each group; the class and the unrelated group have half as many as the subject."""
        half = max(1, len(self.contexts) // 2)
        class_prompts = [f"{self.class_prompt} {words}".rstrip() for words in ("", *self.contexts.values())]
        return {
            "subject": [f"{self.instance_prompt} {words}" for words in self.contexts.values()],
            "class": class_prompts[:half] if self.class_prompt else [],
            "unrelated": list(self.unrelated[:half]),
        }

    @property
    def captions(self) -> list[str]:
        """Captions of the subject's images for an encoder, with the class instead of the trigger word."""
        return [f"{self.class_prompt or self.instance_prompt} {words}" for words in self.contexts.values()]


def make_evaluation_plan(
    instance_prompt: str,
    class_prompt: str | None,
    vocabulary: Vocabulary | None,
    *,
    contexts: int = 8,
    seeds: Sequence[int] = range(4),
    **settings: Any,
) -> EvaluationPlan:
    """Choose contexts and unrelated prompts from the judge's vocabulary, or for photographs.

    Args:
        instance_prompt: the subject's prompt, with the trigger word.
        class_prompt: the prompt without the trigger word, if known.
        vocabulary: the judge's vocabulary, if any.
        contexts: number of contexts, at most; the plan has 4 · contexts · seeds images in all.
        seeds: seeds of every prompt.
        settings: resolution, num_inference_steps, guidance_scale, batch_size.
    """
    known = vocabulary.contexts if vocabulary else {words: words for words in PHOTO_CONTEXTS}
    noun = (class_prompt or instance_prompt).split()[-1]
    unrelated = vocabulary.unrelated if vocabulary else PHOTO_UNRELATED
    return EvaluationPlan(
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        contexts=dict(list(known.items())[:contexts]),
        unrelated=[prompt for prompt in unrelated if noun not in prompt.split()],
        seeds=list(seeds),
        **settings,
    )


@dataclass(frozen=True, kw_only=True)
class Generations:
    """A plan and its generated images."""

    plan: EvaluationPlan
    images: dict[str, dict[str, list[Image.Image]]] = field(default_factory=dict)
    """Images by mode ("adapter", "base") and group, ordered by prompt and then by seed."""

    @property
    def num_images(self) -> int:
        """Number of images in both modes."""
        return 2 * len(self.plan.seeds) * sum(map(len, self.plan.prompts.values()))

    def generate(self, pipe: Pipeline) -> Iterator[int]:
        """Generate the images of both modes with an adapted pipeline; yield the number of finished images."""
        yield from self.generate_mode("base", pipe, disable_hra)
        yield from self.generate_mode("adapter", pipe)

    def generate_mode(
        self, mode: str, pipe: Pipeline, context: Callable[[Pipeline], AbstractContextManager[Any]] = nullcontext
    ) -> Iterator[int]:
        """Generate the images of one mode, each batch within a context; yield as :meth:`generate`."""
        groups = self.images[mode] = {group: [] for group in self.plan.prompts}
        for group, prompts in self.plan.prompts.items():
            inputs = [(prompt, seed) for prompt in prompts for seed in self.plan.seeds]
            for start in range(0, len(inputs), self.plan.batch_size):
                with context(pipe):
                    groups[group] += _generate_batch(pipe, inputs[start : start + self.plan.batch_size], self.plan)
                yield sum(len(images) for mode_groups in self.images.values() for images in mode_groups.values())

    def by_prompt(self, mode: str, group: str) -> list[list[Image.Image]]:
        """Return a group's images, a list per prompt."""
        images, seeds = self.images[mode][group], len(self.plan.seeds)
        return [images[start : start + seeds] for start in range(0, len(images), seeds)]


def _generate_batch(pipe: Pipeline, inputs: Sequence[tuple[str, int]], plan: EvaluationPlan) -> list[Image.Image]:
    options = {
        "height": plan.resolution,
        "width": plan.resolution,
        "num_inference_steps": plan.num_inference_steps,
        "guidance_scale": plan.guidance_scale,
    }
    output = pipe(
        prompt=[prompt for prompt, _ in inputs],
        generator=[torch.Generator().manual_seed(seed) for _, seed in inputs],
        **call_options(pipe, options),
    )
    return images_of(output)
