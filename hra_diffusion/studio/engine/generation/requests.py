"""The request for images: one typed and checked object, shared by the page, the API and the metadata of images.

Its JSON is complete: the request stored in an image generates the same image again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.prompt_weights import PromptSyntax
from hra_diffusion.studio.engine.setting_error import SettingError

Combine = Literal["mean", "product"]
Bind = Literal["none", "prompt"]
MODEL_SCHEDULER = "the model's own"

MAX_PROMPT = 100_000
"""Limit in characters; the end of long prompts is ignored, and named on the page."""
MAX_ADAPTERS = 8
MAX_STRENGTH = 1.5
MAX_SCALE = 4.0
MAX_UPSCALED = 4096
"""Limit of the sides of an upscaled image, in pixels."""
MAX_SEED = 2**53 - 1
"""The largest integer that JSON and browsers keep exactly."""

_VERSION_0_1 = {"combine": {"lie": "mean"}}
"""Values of version 0.1, by setting, with their values of today."""

_KINDS = {"clip_skip": int}
"""Types of settings whose default is None, other than texts."""

_OMITTED = {
    "base": None,
    "clip_skip": None,
    "bind": "none",
    "mask": None,
    "mask_blur": 4,
    "hires_scale": 1.0,
    "hires_steps": 0,
    "hires_strength": 0.5,
}
"""Values that the JSON of a request does not have."""

_MAX_DIGITS = 40
"""Limit of a number in characters."""

_CHOICES = {"combine": get_args(Combine), "prompt_syntax": get_args(PromptSyntax), "bind": get_args(Bind)}

_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 150),
    "guidance_scale": (0, 30),
    "width": (8, 2048),
    "height": (8, 2048),
    "seed": (0, MAX_SEED),
    "count": (1, 16),
    "image_strength": (0.05, 1),
    "mask_blur": (0, 64),
    "hires_scale": (1, MAX_SCALE),
    "hires_steps": (0, 150),
    "hires_strength": (0.05, 1),
    "control_start": (0, 1),
    "control_end": (0, 1),
    "clip_skip": (0, 11),
}


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """An adapter by name, with its position on the geodesic from the base, 0, to the adapter, 1, and beyond."""

    name: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a strength out of range."""
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ConfigError(f"The strength of {self.name!r} is {self.strength}: give 0 to {MAX_STRENGTH}.")


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """The settings of one or more images: the first has `seed`, the next seed + 1, …; a batch changes no image."""

    prompt: str = ""
    negative_prompt: str = ""
    adapters: tuple[AdapterUse, ...] = ()
    combine: Combine = "mean"
    steps: int = 25
    guidance_scale: float = 7.5
    width: int = 512
    height: int = 512
    scheduler: str = MODEL_SCHEDULER
    seed: int = 0
    count: int = 1
    image: str | None = None
    """Digest of the initial image (image to image), among the studio's uploads."""
    image_strength: float = 0.6
    """Denoising strength of image to image, up to 1 for pure noise."""
    mask: str | None = None
    """Digest of the mask of inpainting, among the uploads: white is repainted, black kept."""
    mask_blur: int = 4
    """Radius of the transition at the mask's edge, in pixels."""
    condition: str | None = None
    """Digest of the condition of the control among the adapters, among the uploads."""
    control_start: float = 0.0
    """Start of the control within the denoising range: 0 is noise, 1 the finished image."""
    control_end: float = 1.0
    """End of the control within the denoising range."""
    clip_skip: int | None = None
    """Number of CLIP's last layers to skip; by default that of the base model's settings."""
    prompt_syntax: PromptSyntax = "a1111"
    """Reading of the prompts, as in `pipelines.prompt_options`."""
    bind: Bind = "none"
    """"prompt" for adapters that are active only if the prompt holds their trigger word: those chosen, or else all."""
    base: str | None = None
    """Public name of the base model, among the studio's; by default its first one."""
    hires_scale: float = 1.0
    """Factor of the upscaling before a second pass (hires fix), which is image to image; 1 for no such pass."""
    hires_steps: int = 0
    """Denoising steps of the second pass; 0 is those of the first."""
    hires_strength: float = 0.5
    """Denoising strength of the second pass."""

    def __post_init__(self) -> None:
        """Raise ConfigError for settings out of range or in contradiction."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise SettingError(name, f"is {value}: give a number from {least} to {most}.")
        if self.seed + self.count - 1 > MAX_SEED:
            raise SettingError(
                "seed", f"is {self.seed}: with {self.count} images, give at most {MAX_SEED + 1 - self.count}."
            )
        if self.image:
            self._check_strength("image_strength", self.steps)
        if self.hires_scale > 1:
            self._check_strength("hires_strength", self.hires_steps or self.steps)
            if (side := round(max(self.width, self.height) * self.hires_scale)) > MAX_UPSCALED:
                raise SettingError("hires_scale", f"gives {side} pixels a side, more than {MAX_UPSCALED}: give less.")
            if self.mask:
                raise SettingError("hires_scale", "is for images without a mask: give 1, or remove the mask.")
        if self.control_start >= self.control_end:
            raise SettingError("control_start", f"is {self.control_start}: give less than the end, {self.control_end}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingError(name, f"is {getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        names = [use.name for use in self.adapters]
        if len(names) > MAX_ADAPTERS or len(set(names)) < len(names):
            raise ConfigError(f"Choose at most {MAX_ADAPTERS} adapters, each once; found {len(names)}.")
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > MAX_PROMPT:
                raise SettingError(name, f"is longer than {MAX_PROMPT:,} characters: shorten it.")

    @property
    def second_steps(self) -> int:
        """Number of denoising steps of the second pass, within a scheduler's rounding."""
        return int((self.hires_steps or self.steps) * self.hires_strength) if self.hires_scale > 1 else 0

    def _check_strength(self, name: str, steps: int) -> None:
        """Raise ConfigError if a denoising strength leaves none of the steps."""
        strength = getattr(self, name)
        if int(steps * strength) < 1:
            raise SettingError(
                name,
                f"is {strength:g}: of {steps} steps none is left to change the image; "
                f"give at least {math.ceil(100 / steps) / 100:g}, or more steps.",
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GenerateRequest":
        """Make a request of JSON values; unknown keys and None are ignored.

        Raises:
            ConfigError: a value has the wrong type, or is out of range.
        """
        settings = {field.name: values[field.name] for field in fields(cls) if values.get(field.name) is not None}
        if "adapters" in settings:
            settings["adapters"] = parse_adapter_uses(settings["adapters"])
        for name, value in settings.items():
            if name != "adapters":
                default = getattr(_DEFAULT, name)
                value = _converted(name, value, _KINDS.get(name, str) if default is None else type(default))
                settings[name] = _VERSION_0_1.get(name, {}).get(value, value)
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        values = asdict(self) | {"adapters": [asdict(use) for use in self.adapters]}
        return {name: value for name, value in values.items() if value != _OMITTED.get(name, ...)}

    def single(self, index: int) -> "GenerateRequest":
        """Return the request of one image, by its index."""
        return replace(self, seed=self.seed + index, count=1)

    def without_adapters(self) -> "GenerateRequest":
        """Return the request for the base model alone."""
        return replace(self, adapters=(), condition=None)


def parse_adapter_uses(value: Any) -> tuple[AdapterUse, ...]:
    """Parse a list of names, or of {"name": …, "strength": …}.

    Raises:
        ConfigError: the value is anything else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError('adapters must be a list such as [{"name": "tiger", "strength": 0.8}].')
    uses: list[AdapterUse] = []
    for item in value:
        use = {"name": item} if isinstance(item, str) else item
        if not isinstance(use, Mapping) or not isinstance(use.get("name"), str):
            raise ConfigError(f'An adapter must be a name or {{"name": …, "strength": …}}; found {str(item)[:80]}.')
        uses.append(AdapterUse(name=use["name"], strength=_converted("strength", use.get("strength", 1.0), float)))
    return tuple(uses)


_DEFAULT = GenerateRequest()


def _converted(name: str, value: Any, kind: type) -> Any:
    """Convert a value to a text, a finite number or a whole number; raise ConfigError otherwise."""
    if kind is str:
        if isinstance(value, str):
            return value.replace("\0", "").encode("utf-8", "replace").decode()  # lone surrogates fit into no file
        raise SettingError(name, f"must be a text; found {str(value)[:80]!r}.")
    wanted = "a whole number" if kind is int else "a number"
    try:
        if (
            isinstance(value, bool)
            or len(str(value)) > _MAX_DIGITS
            or not math.isfinite(float(value))
            or (kind is int and float(value) % 1)
        ):
            raise ValueError
        return kind(float(value)) if not isinstance(value, int) else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise SettingError(name, f"must be {wanted}; found {str(value)[:80]!r}.") from None
