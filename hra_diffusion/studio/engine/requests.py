"""What the studio can be asked to draw: one typed request, checked when it is made, whoever it comes from.

The page, the API and the metadata of images say the same, as JSON: an image's request, sent again, is the image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from hra_diffusion.errors import ConfigError

Combine = Literal["lie", "product"]
OWN_SCHEDULER = "the model's own"

MAX_PROMPT = 100_000
"""Characters; models read some 77 tokens of them."""
MAX_ADAPTERS = 8
MAX_STRENGTH = 1.5
MAX_SEED = 2**53 - 1
"""The largest integer that JSON and browsers keep exactly."""

_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 150),
    "guidance_scale": (0, 30),
    "width": (8, 2048),
    "height": (8, 2048),
    "seed": (0, MAX_SEED),
    "count": (1, 16),
    "image_strength": (0.05, 1),
    "control_start": (0, 1),
    "control_end": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """An adapter by its name, and its place on the geodesic from the base, 0, to itself, 1, and beyond."""

    name: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a strength out of its range."""
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ConfigError(f"The strength of {self.name!r} is {self.strength}: give 0 to {MAX_STRENGTH}.")


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """Some images: the first with `seed`, the next with seed + 1, …; each is what it would be alone."""

    prompt: str = ""
    negative_prompt: str = ""
    adapters: tuple[AdapterUse, ...] = ()
    combine: Combine = "lie"
    steps: int = 25
    guidance_scale: float = 7.5
    width: int = 512
    height: int = 512
    scheduler: str = OWN_SCHEDULER
    seed: int = 0
    count: int = 1
    image: str | None = None
    """Digest of an image to start from, among the studio's uploads."""
    image_strength: float = 0.6
    """How far it is taken back to noise, from hardly to wholly."""
    condition: str | None = None
    """Digest of what the control among the adapters follows, likewise."""
    control_start: float = 0.0
    """Where in the denoising range the control begins to act, from 0, noise, …"""
    control_end: float = 1.0
    """… to 1, the finished image."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be drawn."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name} is {value}: give a number from {least} to {most}.")
        if self.seed + self.count - 1 > MAX_SEED:
            raise ConfigError(
                f"seed is {self.seed}: with {self.count} images, give at most {MAX_SEED + 1 - self.count}."
            )
        if self.image and int(self.steps * self.image_strength) < 1:
            raise ConfigError(
                f"image_strength is {self.image_strength:g}: of {self.steps} steps none is left to change the image; "
                f"give at least {math.ceil(100 / self.steps) / 100:g}, or more steps."
            )
        if self.control_start >= self.control_end:
            raise ConfigError(f"control_start is {self.control_start}: give less than control_end, {self.control_end}.")
        if self.combine not in get_args(Combine):
            raise ConfigError(f"combine is {self.combine!r}: choose one of {', '.join(get_args(Combine))}.")
        names = [use.name for use in self.adapters]
        if len(names) > MAX_ADAPTERS or len(set(names)) < len(names):
            raise ConfigError(f"Choose at most {MAX_ADAPTERS} adapters, each once; found {len(names)}.")
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > MAX_PROMPT:
                raise ConfigError(f"The {name.replace('_', ' ')} is longer than {MAX_PROMPT:,} characters: shorten it.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "GenerateRequest":
        """Make a request of loose values, such as JSON's; keys it does not know, and None, are passed over.

        Raises:
            ConfigError: a value is of another kind, or out of its range.
        """
        given = {each.name: values[each.name] for each in fields(cls) if values.get(each.name) is not None}
        if "adapters" in given:
            given["adapters"] = adapter_uses(given["adapters"])
        for name, value in given.items():
            if name != "adapters":
                default = getattr(_DEFAULT, name)
                given[name] = _converted(name, value, str if default is None else type(default))
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """The request as JSON has it."""
        return asdict(self) | {"adapters": [asdict(use) for use in self.adapters]}

    def single(self, index: int) -> "GenerateRequest":
        """The request that one of the images would have alone."""
        return replace(self, seed=self.seed + index, count=1)

    def without_adapters(self) -> "GenerateRequest":
        """The same of the plain base model."""
        return replace(self, adapters=(), condition=None)


def adapter_uses(value: Any) -> tuple[AdapterUse, ...]:
    """Read a list of names, or of {"name": …, "strength": …}.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError('adapters must be a list such as [{"name": "tiger", "strength": 0.8}].')
    uses: list[AdapterUse] = []
    for each in value:
        said = {"name": each} if isinstance(each, str) else each
        if not isinstance(said, Mapping) or not isinstance(said.get("name"), str):
            raise ConfigError(f'An adapter must be a name or {{"name": …, "strength": …}}; found {str(each)[:80]}.')
        uses.append(AdapterUse(name=said["name"], strength=_converted("strength", said.get("strength", 1.0), float)))
    return tuple(uses)


_DEFAULT = GenerateRequest()


def _converted(name: str, value: Any, kind: type) -> Any:
    """Return a value as text, as a finite number or as a whole one; raises ConfigError."""
    if kind is str:
        if isinstance(value, str):
            return value.replace("\0", "").encode("utf-8", "replace").decode()  # lone surrogates fit into no file
        raise ConfigError(f"{name} must be a text; found {str(value)[:80]!r}.")
    wanted = "a whole number" if kind is int else "a number"
    try:
        if isinstance(value, bool) or not math.isfinite(float(value)) or (kind is int and float(value) % 1):
            raise ValueError
        return kind(float(value)) if not isinstance(value, int) else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} must be {wanted}; found {str(value)[:80]!r}.") from None
