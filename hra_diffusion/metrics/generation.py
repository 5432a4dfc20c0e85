"""Which images are compared, and drawing them: the same prompts and seeds with an adapter and without."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from hra_diffusion.metrics.vocabulary import Vocabulary
from hra_diffusion.pipelines import disable_hra

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
class Plan:
    """What is drawn, in three groups: the subject in several contexts, its class, and unrelated things."""

    instance_prompt: str
    class_prompt: str | None
    """Without it the class is not drawn, and prompts are compared to images with their rare word."""
    contexts: Mapping[str, str]
    """Words that follow the instance prompt, by what a judge may call the background."""
    unrelated: Sequence[str]
    seeds: Sequence[int]
    """Of every prompt."""
    resolution: int
    """Side of the images in pixels."""
    num_inference_steps: int
    guidance_scale: float
    batch_size: int = 4
    """Images drawn at once; with 1 they are, to the bit, what ``hra-diffusion generate`` draws."""

    @property
    def prompts(self) -> dict[str, list[str]]:
        """The prompts of each group: the subject in every context, half as many of its class and of other things."""
        half = max(1, len(self.contexts) // 2)
        about_class = [f"{self.class_prompt} {words}".rstrip() for words in ("", *self.contexts.values())]
        return {
            "subject": [f"{self.instance_prompt} {words}" for words in self.contexts.values()],
            "class": about_class[:half] if self.class_prompt else [],
            "unrelated": list(self.unrelated[:half]),
        }

    @property
    def captions(self) -> list[str]:
        """What the subject's images should show in words an encoder knows: the class for the rare word."""
        return [f"{self.class_prompt or self.instance_prompt} {words}" for words in self.contexts.values()]


def make_plan(
    instance_prompt: str,
    class_prompt: str | None,
    vocabulary: Vocabulary | None,
    *,
    contexts: int = 8,
    seeds: Sequence[int] = range(4),
    **drawing: Any,
) -> Plan:
    """Choose contexts and unrelated prompts: the judge's own, or some for photographs.

    Args:
        instance_prompt: with the rare word.
        class_prompt: without it, if known.
        vocabulary: of the judge, if it has one.
        contexts: how many, at most; 4 · contexts · seeds images are drawn in all.
        seeds: of every prompt.
        drawing: resolution, num_inference_steps, guidance_scale, batch_size.
    """
    known = vocabulary.contexts if vocabulary else {words: words for words in PHOTO_CONTEXTS}
    noun = (class_prompt or instance_prompt).split()[-1]
    unrelated = vocabulary.unrelated if vocabulary else PHOTO_UNRELATED
    return Plan(
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        contexts=dict(list(known.items())[:contexts]),
        unrelated=[prompt for prompt in unrelated if noun not in prompt.split()],
        seeds=list(seeds),
        **drawing,
    )


@dataclass(frozen=True, kw_only=True)
class Generations:
    """The images of a plan, as far as they are drawn."""

    plan: Plan
    images: dict[str, dict[str, list[Image.Image]]] = field(default_factory=dict)
    """By mode ("adapter", "base") and group; prompt by prompt, and within a prompt seed by seed."""

    @property
    def total(self) -> int:
        """Number of images in both modes."""
        return 2 * len(self.plan.seeds) * sum(map(len, self.plan.prompts.values()))

    def draw(self, pipe: Any) -> Iterator[int]:
        """Draw with an adapted pipeline, in both modes; yields how many images are done."""
        yield from self.draw_as("base", pipe, disable_hra)
        yield from self.draw_as("adapter", pipe)

    def draw_as(
        self, mode: str, pipe: Any, within: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    ) -> Iterator[int]:
        """Draw one mode's images, each batch within a context; yields as :meth:`draw`."""
        groups = self.images[mode] = {group: [] for group in self.plan.prompts}
        for group, prompts in self.plan.prompts.items():
            jobs = [(prompt, seed) for prompt in prompts for seed in self.plan.seeds]
            for start in range(0, len(jobs), self.plan.batch_size):
                with within(pipe):
                    groups[group] += _draw(pipe, jobs[start : start + self.plan.batch_size], self.plan)
                yield sum(len(drawn) for of_mode in self.images.values() for drawn in of_mode.values())

    def by_prompt(self, mode: str, group: str) -> list[list[Image.Image]]:
        """A group's images, a list a prompt."""
        drawn, seeds = self.images[mode][group], len(self.plan.seeds)
        return [drawn[start : start + seeds] for start in range(0, len(drawn), seeds)]


def _draw(pipe: Any, jobs: Sequence[tuple[str, int]], plan: Plan) -> list[Image.Image]:
    return pipe(
        [prompt for prompt, _ in jobs],
        generator=[torch.Generator().manual_seed(seed) for _, seed in jobs],
        height=plan.resolution,
        width=plan.resolution,
        num_inference_steps=plan.num_inference_steps,
        guidance_scale=plan.guidance_scale,
    ).images
