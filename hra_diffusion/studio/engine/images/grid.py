"""X/Y grids: one request with several values for two of its settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.studio.engine.adapters.checkpoints import CHECKPOINT
from hra_diffusion.studio.engine.adapters.interpolations import INTERPOLATED, Interpolation
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest

_SETTINGS = {"seed": "seed", "steps": "steps", "guidance": "guidance_scale", "scheduler": "scheduler"}
"""Axes of a single setting, with its name."""
AXES = ("strength", "adapter", "checkpoint", "interpolation", "prompt", *_SETTINGS)
NO_ADAPTER = "none"
FINAL = "final"
_ORDER = ("adapter", "checkpoint", "interpolation")
"""Axes that are applied before all others: their strength may follow."""
MAX_VALUES, MAX_CELLS = 12, 64
_MAX_LABEL = 200
"""Characters of a label: drawing a prompt of 100,000 takes seconds."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting and its values, as texts.

    strength: of all adapters; adapter: a single one, or "none", at the first strength; checkpoint: steps of the first
    adapter's training job, or "final"; interpolation: positions from the first adapter, 0, to the second, 1; prompt:
    {prompt} stands for the prompt of the request; seed, steps, guidance and scheduler: settings of the request.
    """

    kind: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, kind: str, text: str) -> "Axis":
        """Parse values from a text: prompts one a line, others separated by commas or lines.

        Raises:
            ConfigError: the setting is unknown, or there are no values or too many.
        """
        if kind not in AXES:
            raise ConfigError(f"There is no axis {str(kind)[:80]!r}; known are: {', '.join(AXES)}.")
        parts = text.split("\n") if kind == "prompt" else text.replace("\n", ",").split(",")
        values = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
        if not 1 <= len(values) <= MAX_VALUES:
            separator = "one a line" if kind == "prompt" else "separated by commas"
            raise ConfigError(f"Give 1 to {MAX_VALUES} values for {kind}, {separator}; found {len(values)}.")
        return cls(kind=kind, values=values)

    def apply(self, request: GenerateRequest, value: str) -> GenerateRequest:
        """Return the request with this value.

        Raises:
            ConfigError: the value does not suit the setting.
        """
        if self.kind == "prompt":
            return replace(request, prompt=value.replace("{prompt}", request.prompt))
        if self.kind == "adapter":
            strength = request.adapters[0].strength if request.adapters else 1.0
            uses = () if value == NO_ADAPTER else (AdapterUse(name=value, strength=strength),)
            return replace(request, adapters=uses)
        if self.kind in _SETTINGS:
            return GenerateRequest.from_json(request.to_json() | {_SETTINGS[self.kind]: value})
        if not request.adapters:
            raise ConfigError(f"A {self.kind} axis needs an adapter: choose one under Generate.")
        if self.kind == "checkpoint":
            first, *others = request.adapters
            job = first.name.partition(CHECKPOINT)[0]
            name = job if value == FINAL else f"{job}{CHECKPOINT}{value}"
            return replace(request, adapters=(replace(first, name=name), *others))
        if self.kind == "interpolation":
            if len(request.adapters) < 2:
                raise ConfigError("An interpolation axis needs two adapters: choose a second one under Generate.")
            first, second, *others = request.adapters
            between = Interpolation.parse(f"{first.name}{INTERPOLATED}{value}/{second.name}")
            return replace(request, adapters=(replace(first, name=between.name), *others))
        uses = [{"name": use.name, "strength": value} for use in request.adapters]
        return GenerateRequest.from_json(request.to_json() | {"adapters": uses})


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of requests, row by row."""

    x: Axis
    y: Axis
    rows: tuple[tuple[GenerateRequest, ...], ...]

    @classmethod
    def from_request(cls, request: GenerateRequest, x: Axis, y: Axis) -> "Grid":
        """Make the request of every cell; invalid values are refused before the first image.

        Raises:
            ConfigError: both axes are the same, there are too many cells, or a value is invalid.
        """
        if x.kind == y.kind:
            raise ConfigError(f"Both axes are {x.kind}: choose two different ones.")
        if len(x.values) * len(y.values) > MAX_CELLS:
            raise ConfigError(f"{len(x.values)} × {len(y.values)} are more than {MAX_CELLS} cells: give fewer values.")
        first, second = sorted((x, y), key=lambda axis: _ORDER.index(axis.kind) if axis.kind in _ORDER else len(_ORDER))
        cells: dict[tuple[str, str], GenerateRequest] = {}
        for one in first.values:
            for other in second.values:
                plain = first.kind == "adapter" and one == NO_ADAPTER and second.kind in ("strength", "checkpoint")
                chosen = first.apply(replace(request, count=1), one)
                cell = (one, other) if first is x else (other, one)
                cells[cell] = chosen if plain else second.apply(chosen, other)
        rows = tuple(tuple(cells[column, row] for column in x.values) for row in y.values)
        return cls(x=x, y=y, rows=rows)

    def labels(self, axis: Axis) -> list[str]:
        """Return the labels of the columns or rows, the starts of long ones."""
        plain = ("prompt", "adapter", "scheduler")
        labels = [value if axis.kind in plain else f"{axis.kind} {value}" for value in axis.values]
        return [label if len(label) <= _MAX_LABEL else f"{label[:_MAX_LABEL]}…" for label in labels]

    def compose(self, images: Sequence[Image.Image]) -> Image.Image:
        """Compose the images, given row by row, into one labeled image."""
        width = len(self.x.values)
        rows = [images[start : start + width] for start in range(0, len(images), width)]
        return contact_sheet(rows, self.labels(self.y), self.labels(self.x))
