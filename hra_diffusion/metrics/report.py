"""Reports: measurements as JSON and as a Markdown table, with a contact sheet of the images."""

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
"""Columns of the table, by mode."""

SHEET_SEEDS, SHEET_SIDE = 2, 192


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """An estimate of one metric in one mode, with the seeds of its images; real images have none."""

    name: str
    mode: str
    estimate: Estimate
    seeds: list[int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The measurements of an adapter, with their images."""

    measurements: Sequence[Measurement]
    notes: Sequence[str]
    generations: Generations
    references: Sequence[Image.Image]
    about: dict[str, str] = field(default_factory=dict)
    """Further entries: base model, adapter, folder of real images."""

    def value(self, name: str, mode: str = "adapter") -> float:
        """Return the value of the first metric with this prefix.

        Raises:
            KeyError: no metric with this prefix was measured in this mode.
        """
        for measurement in self.measurements:
            if measurement.name.startswith(name) and measurement.mode == mode:
                return measurement.estimate.value
        raise KeyError(f"nothing named {name!r} was measured in mode {mode!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the images, for JSON."""
        measures = [{"name": m.name, "mode": m.mode, **asdict(m.estimate), "seeds": m.seeds} for m in self.measurements]
        return {
            "measures": measures,
            "notes": list(self.notes),
            "plan": asdict(self.generations.plan),
            "references": len(self.references),
            **self.about,
        }

    def to_markdown(self) -> str:
        """Return the table, the method and the notes."""
        rows: dict[str, dict[str, Estimate]] = {}
        for measurement in self.measurements:
            rows.setdefault(measurement.name, {})[measurement.mode] = measurement.estimate
        plan = self.generations.plan
        method = (
            f"In brackets 95 % bootstrap intervals. {len(plan.contexts)} contexts, seeds "
            f"{', '.join(map(str, plan.seeds))}, {plan.num_inference_steps} steps, guidance {plan.guidance_scale:g}, "
            f"{len(self.references)} real images."
        )
        return "\n".join([markdown_table(rows, MODES), "", method, *self.notes, ""])

    def to_image(self) -> Image.Image:
        """Return a contact sheet: every prompt at two seeds, without and with the adapter."""
        plan = self.generations.plan
        columns = [f"{mode} adapter\nseed {seed}" for seed in plan.seeds[:SHEET_SEEDS] for mode in ("without", "with")]
        rows: dict[str, list[Image.Image]] = {}
        for group, prompts in plan.prompts.items():
            modes = [self.generations.by_prompt(mode, group) for mode in ("base", "adapter")]
            for prompt, base, adapter in zip(prompts, *modes, strict=True):
                pairs = list(zip(base, adapter, strict=True))[:SHEET_SEEDS]
                rows[prompt] = [_shrink(image, SHEET_SIDE) for pair in pairs for image in pair]
        return contact_sheet(list(rows.values()), list(rows), columns)

    def write(self, folder: Path) -> list[Path]:
        """Write metrics.json, metrics.md and metrics.png, all or none; return their paths.

        Raises:
            OutputError: the folder is not writable.
        """
        sheet = io.BytesIO()
        self.to_image().save(sheet, "PNG", optimize=True)
        contents = {
            folder / METRICS: (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode(),
            folder / TABLE: self.to_markdown().encode(),
            folder / FIGURE: sheet.getvalue(),
        }
        write_together(contents)
        return list(contents)


def markdown_table(rows: Mapping[str, Mapping[str, Estimate]], columns: Mapping[str, str]) -> str:
    """Return a Markdown table with a row per metric and a column per mode.

    Args:
        rows: estimates by metric and mode; a missing one is –.
        columns: titles by mode.
    """
    lines = [["", *columns.values()], ["---"] * (len(columns) + 1)]
    lines += [[name, *(str(cells.get(column, "–")) for column in columns)] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shrink(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
