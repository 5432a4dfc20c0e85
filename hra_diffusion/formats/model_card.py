"""The model card of a published adapter: README.md, with the hub's metadata on top."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from huggingface_hub import EvalResult, ModelCardData

TAGS: Final = ("text-to-image", "diffusers", "hra", "peft")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A description of an adapter.

    Attributes:
        name: its name.
        repository: its id on the hub.
        components: its components of the pipeline.
        rank: its number of reflections a layer.
        base_model: its base model; the hub links to it if it is the id of a repository.
        instance_prompt: the prompt for the subject.
        license: one of the hub's identifiers, such as "mit".
        images: prompts of example images, by file name.
        sheet: file name of an image for the text.
        metrics: numbers by name.
        table: the same as a Markdown table, with explanations.
        settings: the run's settings, by flag.
        is_control: whether it is a control.
    """

    name: str
    repository: str
    components: Sequence[str]
    rank: int
    base_model: str | None = None
    instance_prompt: str | None = None
    license: str | None = None
    images: Mapping[str, str] = field(default_factory=dict[str, str])
    sheet: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    table: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    is_control: bool = False

    def __str__(self) -> str:
        """Return the whole page."""
        parts = [f"---\n{self._data().to_yaml()}\n---", f"# {self.name}", self._introduction(), self._usage()]
        if self.sheet:
            parts.append(f"![Without and with the adapter]({self.sheet})")
        if self.table:
            parts.append(f"## Measured\n\n{self.table.strip()}")
        if self.settings:
            lines = "\n".join(f"| `{name}` | `{value}` |" for name, value in self.settings.items())
            parts.append(f"## Settings of the run\n\n| flag | value |\n|---|---|\n{lines}")
        return "\n\n".join(parts) + "\n"

    def _data(self) -> ModelCardData:
        results = [
            EvalResult(
                task_type="text-to-image",
                dataset_type="custom",
                dataset_name="images of the subject",
                metric_type=name,
                metric_value=value,
            )
            for name, value in self.metrics.items()
        ]
        return ModelCardData(
            base_model=self.base_model if self.base_model and self.base_model.count("/") == 1 else None,
            library_name="diffusers",
            pipeline_tag="text-to-image",
            license=self.license,
            tags=list(TAGS),
            instance_prompt=self.instance_prompt,
            widget=[{"text": prompt, "output": {"url": file}} for file, prompt in self.images.items()] or None,
            model_name=self.name if results else None,
            eval_results=results or None,
        )

    def _introduction(self) -> str:
        base = f" of {self.base_model}" if self.base_model else ""
        prompt = f' Its instance prompt is "{self.instance_prompt}".' if self.instance_prompt else ""
        return (
            f"An adapter{base} ({', '.join(self.components)}), made by [Householder Reflection Adaptation]"
            f"(https://arxiv.org/abs/2405.17484) of rank {self.rank}.{prompt}"
        )

    def _usage(self) -> str:
        base, repository = _quoted(self.base_model or "…"), _quoted(self.repository)
        generate = f"pipe({_quoted(self.instance_prompt or '…')}).images[0]"
        if self.is_control:
            imports = ["from hra_diffusion import load_hra_control", "from PIL import Image"]
            use = [
                f"control = load_hra_control(pipe, {repository})",
                'with control.guiding(pipe, Image.open("…")):',
                f"    {generate}",
            ]
        else:
            imports = ["from hra_diffusion import load_hra_weights"]
            use = [f"load_hra_weights(pipe, {repository})", generate]
        lines = [
            "from diffusers import DiffusionPipeline",
            *imports,
            "",
            f"pipe = DiffusionPipeline.from_pretrained({base}, use_safetensors=True)",
            *use,
        ]
        return "\n".join(["```python", *lines, "```"])


def _quoted(text: str) -> str:
    """Return a text as a Python literal, in the style of code formatters."""
    return json.dumps(text, ensure_ascii=False)
