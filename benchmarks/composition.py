"""Several adapters in one pipeline: `python benchmarks/composition.py`, hours on two cores.

    --subjects tiger robot …    folders in assets/subjects; all by default
    --words own same            a trigger word for each subject, or "sks" for all
    --active 1 2 4 6            numbers of adapters at once
    --steps 200 --rank 8
    --contexts 8 --seeds 2      images for each subject: contexts · seeds
    --output_dir outputs/composition
    --smoke                     everything at a tiny size, to check that the benchmark runs

Each prompt names one subject. Its own adapter is active with those of other subjects: HRA as a product, HRA trained in
slots, LoRA as a sum, and HRA bound to prompts, where all of them are loaded and the prompt chooses. Every trained
adapter and every measurement writes a file, so a second call resumes the benchmark.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from measure import describe_machine, print_table
from methods import (
    SCORES,
    cached,
    methods,
    plan_for,
    prepare_subject,
    prepared_run,
    radians,
    scores_of,
    subject_parser,
    train_method,
)
from peft import PeftModel
from PIL import Image

from hra_diffusion import load_hra_weights, using_hra_adapters
from hra_diffusion.metrics import Generations
from hra_diffusion.pipelines import adapted_components
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.run import Run

OUTPUT_DIR = "outputs/composition"
WORDS = ("sks", "ohwx", "phol", "hta", "olis", "zwx")
METHODS = {"HRA": ("HRA, λ = 0", 7e-3), "LoRA": ("LoRA, same rank", 1.5e-3)}
"""The methods of methods.py with their best rates there."""
SLOTS = "HRA in slots"
"""HRA by the project's own training, at the same rate, with a slot for each subject."""


class Composition:
    """Adapters of several subjects, and their images together.

    Args:
        words: "own" or "same".
        options: the command's options.
    """

    def __init__(self, words: str, options: argparse.Namespace) -> None:
        self.words, self.options = words, options
        self.folder: Path = options.output_dir / words
        self.run = cache(self._prepare)
        self.base_images = cache(self._generate_base)
        self.pipeline = cache(self._load)

    def measure(self, method: str, subject: str, count: int, *, bound: bool = False) -> dict[str, float]:
        """Measure a subject's images with the adapters of `count` subjects."""
        name = f"{method}, bound" if bound else method
        path = self.folder / "scores" / subject / f"{name}, {count}.json"
        subjects: list[str] = self.options.subjects
        start = subjects.index(subject)
        names = [subjects[(start + step) % len(subjects)] for step in range(count)]
        return cached(path, lambda: self.scores(method, subject, names, bound))

    def scores(self, method: str, subject: str, names: Sequence[str], bound: bool) -> dict[str, float]:
        """Generate a subject's images with the adapters of some subjects, and measure them."""
        pipe = self.pipeline(method)
        plan = plan_for(self.run(subject), self.options)
        generations = Generations(plan=plan, images={"base": self.base_images(subject)})
        with self.activated(method, names, **({"bind": "prompt"} if bound else {})):
            for _ in generations.generate_mode("adapter", pipe):
                pass
        return scores_of(generations, subject)

    def activated(self, method: str, names: Sequence[str], **binding: Any) -> AbstractContextManager[None]:
        """Use the adapters of some subjects within a `with` block: their product, sum or binding."""
        pipe = self.pipeline(method)
        if method != "LoRA":
            triggers = {name: self.phrase(name) for name in names} if binding else None
            return using_hra_adapters(pipe, names, combine="product", triggers=triggers, **binding)
        for component in pipe.components.values():
            if isinstance(component, PeftModel):
                component.base_model.set_adapter(list(names))
        return nullcontext()

    def phrase(self, subject: str) -> str:
        """Return a subject's trigger word with its noun: the folder's name."""
        number = self.options.subjects.index(subject) if self.words == "own" else 0
        return f"{WORDS[number]} {subject}"

    def _prepare(self, subject: str) -> Run:
        return prepare_subject(subject, self.options, instance_prompt=self._prompt(subject))

    def _prompt(self, subject: str) -> str:
        return f"a 3d render of a {self.phrase(subject)}"

    def _generate_base(self, subject: str) -> dict[str, list[Image.Image]]:
        generations = Generations(plan=plan_for(self.run(subject), self.options))
        for _ in generations.generate_mode("base", self.pipeline("none")):
            pass
        return generations.images["base"]

    def train(self, method: str, subject: str) -> Path:
        """Train a method on a subject, unless its folder exists; return the folder."""
        folder = self.folder / method / subject
        if not folder.exists():
            components = self._train_in_slot(subject) if method == SLOTS else self._train_method(method, subject)
            partial = folder.with_name(f"{subject}.partial")
            for component, model in components.items():
                model.save_pretrained(partial / component)
            partial.rename(folder)
        return folder

    def _train_method(self, method: str, subject: str) -> Mapping[str, Any]:
        name, rate = METHODS[method]
        run = prepared_run(subject, self.options, instance_prompt=self._prompt(subject))
        components, _, _ = train_method(run, methods(self.options.rank)[name], rate, self.options)
        return components

    def _train_in_slot(self, subject: str) -> Mapping[str, Any]:
        subjects: list[str] = self.options.subjects
        _, rate = METHODS["HRA"]
        run = prepared_run(
            subject,
            self.options,
            instance_prompt=self._prompt(subject),
            slot=f"{subjects.index(subject) + 1}/{len(subjects)}",
            learning_rate=radians(rate, self.options.rank),
        )
        for _ in run.start().trainer.steps(self.options.steps):
            pass
        return adapted_components(run.pipe)

    def _load(self, method: str) -> Pipeline:
        """Return a pipeline with the adapters of all subjects; the base model for "none"."""
        subjects: list[str] = self.options.subjects
        folders = {subject: self.train(method, subject) for subject in subjects} if method != "none" else {}
        run = self._prepare(subjects[0])
        pipe = run.pipe
        for name, component in list(pipe.components.items()):
            if hasattr(component, "unload") and hasattr(component, "peft_config"):
                setattr(pipe, name, component.unload())
        for subject, folder in folders.items():
            if method != "LoRA":
                load_hra_weights(pipe, folder, subject)
                continue
            for part in sorted(folder.iterdir()):
                model = getattr(pipe, part.name)
                if isinstance(model, PeftModel):
                    model.load_adapter(str(part), subject)
                else:
                    setattr(pipe, part.name, PeftModel.from_pretrained(model, str(part), subject).eval())
        return pipe


def rows(composition: Composition, options: argparse.Namespace) -> list[list[Any]]:
    """Measure all combinations, the most important ones first, and return the rows of the table."""
    counts = [count for count in options.active if count <= len(options.subjects)]
    cases: list[tuple[str, int, bool]] = [("HRA", counts[0], False), ("HRA", counts[-1], True)]
    cases += [("HRA", count, False) for count in counts[1:]]
    cases += [(method, count, False) for method in ("LoRA", SLOTS) for count in counts]
    table: list[list[Any]] = []
    for method, count, bound in cases:
        results = [composition.measure(method, subject, count, bound=bound) for subject in options.subjects]
        means = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
        label = f"{method}, bound to prompts" if bound else f"{method}, {'sum' if method == 'LoRA' else 'product'}"
        table.append([composition.words, label, count, *(means[key] for key in SCORES)])
        print(*table[-1], flush=True)
    return table


def main() -> None:
    parser = subject_parser(__doc__, OUTPUT_DIR)
    parser.add_argument("--words", nargs="*", choices=("own", "same"), default=["own", "same"])
    parser.add_argument("--active", nargs="*", type=int, default=[1, 2, 4, 6])
    options = parser.parse_args()
    if options.smoke:
        options.subjects, options.words, options.active = ["tiger", "robot"], ["own"], [1, 2]
        options.steps = options.contexts = options.seeds = 1
    print(describe_machine())
    table = [row for words in options.words for row in rows(Composition(words, options), options)]
    print_table(
        f"{len(options.subjects)} subjects, {options.steps} steps, r = {options.rank}",
        ["words", "", "active", *SCORES],
        table,
    )


if __name__ == "__main__":
    main()
