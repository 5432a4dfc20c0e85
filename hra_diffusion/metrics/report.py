"""Results as JSON, as a Markdown table and as a sheet of the images they were taken from."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.run_folder import FIGURE, METRICS, TABLE
from hra_diffusion.metrics.bootstrap import Estimate
from hra_diffusion.metrics.generation import Generations

MODES = {"adapter": "with adapter", "base": "without", "real": "real images"}
"""Columns of the table."""

SHEET_SEEDS, SHEET_SIDE = 2, 192


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number: what, of which images, how sure, from which seeds (none for real images)."""

    name: str
    mode: str
    estimate: Estimate
    seeds: list[int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, and on what."""

    measures: Sequence[Measure]
    notes: Sequence[str]
    drawings: Generations
    references: Sequence[Image.Image]
    about: dict[str, str] = field(default_factory=dict)
    """What else is worth knowing: base, adapter, real images."""

    def value(self, name: str, mode: str = "adapter") -> float:
        """The number whose name begins so; raises KeyError when there is none."""
        for measure in self.measures:
            if measure.name.startswith(name) and measure.mode == mode:
                return measure.estimate.value
        raise KeyError(f"nothing named {name!r} was measured in mode {mode!r}")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, for JSON."""
        measures = [{"name": m.name, "mode": m.mode, **asdict(m.estimate), "seeds": m.seeds} for m in self.measures]
        return {
            "measures": measures,
            "notes": list(self.notes),
            "plan": asdict(self.drawings.plan),
            "references": len(self.references),
            **self.about,
        }

    def to_markdown(self) -> str:
        """The table, how its numbers came about, and the notes."""
        rows: dict[str, dict[str, Estimate]] = {}
        for measure in self.measures:
            rows.setdefault(measure.name, {})[measure.mode] = measure.estimate
        plan = self.drawings.plan
        method = (
            f"In brackets 95 % bootstrap intervals. {len(plan.contexts)} contexts, seeds "
            f"{', '.join(map(str, plan.seeds))}, {plan.num_inference_steps} steps, guidance {plan.guidance_scale:g}, "
            f"{len(self.references)} real images."
        )
        return "\n".join([markdown_table(rows, MODES), "", method, *self.notes, ""])

    def sheet(self) -> Image.Image:
        """Every prompt at two seeds, without and with the adapter."""
        plan = self.drawings.plan
        columns = [f"{mode} adapter\nseed {seed}" for seed in plan.seeds[:SHEET_SEEDS] for mode in ("without", "with")]
        rows: dict[str, list[Image.Image]] = {}
        for group, prompts in plan.prompts.items():
            modes = [self.drawings.by_prompt(mode, group) for mode in ("base", "adapter")]
            for prompt, base, adapter in zip(prompts, *modes, strict=True):
                pairs = list(zip(base, adapter, strict=True))[:SHEET_SEEDS]
                rows[prompt] = [_at_most(image, SHEET_SIDE) for pair in pairs for image in pair]
        return contact_sheet(list(rows.values()), list(rows), columns)

    def write(self, folder: Path) -> list[Path]:
        """Write metrics.json, metrics.md and metrics.png, all or none; returns their paths.

        Raises:
            OutputError: the folder cannot be written.
        """
        sheet = io.BytesIO()
        self.sheet().save(sheet, "PNG", optimize=True)
        contents = {
            folder / METRICS: (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode(),
            folder / TABLE: self.to_markdown().encode(),
            folder / FIGURE: sheet.getvalue(),
        }
        write_together(contents)
        return list(contents)


def markdown_table(rows: Mapping[str, Mapping[str, Estimate]], columns: Mapping[str, str]) -> str:
    """Lay estimates out: a row a metric, a column a key of ``columns`` (with its title), – where there is none."""
    lines = [["", *columns.values()], ["---"] * (len(columns) + 1)]
    lines += [[name, *(str(cells.get(column, "–")) for column in columns)] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _at_most(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
