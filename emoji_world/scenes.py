"""A scene: one thing, perhaps recolored or patterned, on a background, with its image and its captions.

`sample_spec` samples the content of a scene, `SceneRenderer.render` renders it and `caption` describes it. The three
share only the `Spec`: a scene needs no caption, and a caption no image. Everything is a function of a generator.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from emoji_world import backgrounds, paint, world
from emoji_world.icons import Icons

SIZE = backgrounds.SIZE
_VARIANTS = 48  # rendered variants of each location

_COLOR_NAMES = tuple(world.COLORS)
_PHRASES = {location.name: location.phrases for location in world.LOCATIONS}


@dataclass(frozen=True, kw_only=True)
class Background:
    """A background. `kind` is "plain" (one color), one of `world.BACKDROPS` (two) or a location's name (none)."""

    kind: str
    colors: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """Its phrases in captions, the most common first."""
        if self.kind == "plain":
            return (f"on {_with_article(self.colors[0])} background",)
        if self.kind in world.BACKDROPS:
            first, second = self.colors
            return (f"on {_with_article(first)} and {second} {self.kind} background",)
        return _PHRASES[self.kind]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The content of a scene. Without `color` and `pattern` the thing looks like its icon."""

    kind: str
    style: str
    background: Background
    color: str | None = None
    pattern: str | None = None

    @property
    def thing(self) -> str:
        """The thing in words, "a striped green car"."""
        return _with_article(" ".join(word for word in (self.pattern, self.color, self.kind) if word))

    @property
    def held_out(self) -> bool:
        """Whether training excludes this combination of thing and background: one in ten."""
        return zlib.crc32(f"{self.thing} {self.background.phrases[0]}".encode()) % 10 == 0


def sample_spec(rng: np.random.Generator, kinds: tuple[str, ...] = tuple(world.KINDS)) -> Spec:
    """Sample a scene: half the things as their icons, a third recolored, some patterned."""
    has_color, has_pattern = [(False, False), (True, False), (True, True), (False, True)][
        rng.choice(4, p=[0.5, 0.3, 0.12, 0.08])
    ]
    return Spec(
        kind=_pick(rng, kinds),
        style=_pick(rng, tuple(world.STYLES)),
        color=_pick(rng, _COLOR_NAMES) if has_color else None,
        pattern=_pick(rng, world.PATTERNS) if has_pattern else None,
        background=sample_background(rng),
    )


def sample_background(rng: np.random.Generator) -> Background:
    """Sample a background: 45 % plain, 15 % in two colors, 40 % a location."""
    chance = rng.random()
    if chance < 0.45:
        return Background(kind="plain", colors=(_pick(rng, _COLOR_NAMES),))
    if chance < 0.6:
        first, second = rng.choice(len(_COLOR_NAMES), 2, replace=False)
        return Background(kind=_pick(rng, world.BACKDROPS), colors=(_COLOR_NAMES[first], _COLOR_NAMES[second]))
    return Background(kind=world.LOCATIONS[rng.integers(len(world.LOCATIONS))].name)


def caption(spec: Spec, rng: np.random.Generator) -> str:
    """Write a caption: with the style in 7 of 10, the background in 9 of 10, in varied order."""
    phrases = spec.background.phrases
    background = "" if rng.random() < 0.1 else f" {phrases[0] if rng.random() < 0.7 else _pick(rng, phrases)}"
    style = world.STYLES[spec.style]
    chance = rng.random()
    if chance < 0.5:
        return f"{_with_article(style)} of {spec.thing}{background}"
    return f"{spec.thing}{background}, {style}" if chance < 0.7 else f"{spec.thing}{background}"


class SceneRenderer:
    """Renders scenes; holds the icons and the rendered variants of the locations."""

    def __init__(self, icons: Icons) -> None:
        self.icons = icons
        rng = np.random.default_rng(0)
        self._locations = {
            location.name: [backgrounds.location(location.name, rng) for _ in range(_VARIANTS)]
            for location in world.LOCATIONS
        }

    def render(self, spec: Spec, rng: np.random.Generator) -> Image.Image:
        """Render the scene as RGB of SIZE × SIZE pixels; position, size, tilt and mirroring are random."""
        return self.compose(self.thing(spec), self.backdrop(spec.background, rng), rng)

    def thing(self, spec: Spec) -> Image.Image:
        """Render the icon (RGBA) in the scene's color and pattern."""
        icon = self.icons[spec.style, spec.kind]
        if spec.color:
            icon = paint.recolor(icon, spec.color)
        ink = "black" if spec.color in ("white", "yellow") else "white"
        return paint.add_pattern(icon, spec.pattern, ink) if spec.pattern else icon

    def backdrop(self, background: Background, rng: np.random.Generator) -> Image.Image:
        """Render a background (RGB)."""
        if background.kind == "plain":
            return backgrounds.plain(background.colors[0])
        if background.kind in world.BACKDROPS:
            return backgrounds.backdrop(background.kind, *background.colors, rng)
        return self._locations[background.kind][rng.integers(_VARIANTS)]

    def compose(self, thing: Image.Image, backdrop: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Paste an RGBA thing on an RGB background: 68–88 % of its width, ±6 pixels, ±8°, mirrored half the time."""
        if rng.random() < 0.5:
            thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        side = round(SIZE * rng.uniform(0.68, 0.88))
        placed = thing.resize((side, side), Image.Resampling.BICUBIC)
        placed = placed.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
        image = backdrop.copy()
        corner = [(SIZE - placed.size[axis]) // 2 + int(rng.integers(-6, 7)) for axis in (0, 1)]
        image.paste(placed, (corner[0], corner[1]), placed)
        return image


def clashes(thing: Image.Image, backdrop: Image.Image) -> bool:
    """Return whether the background hides the thing: whether their mean colors are too near."""
    pixels = np.asarray(thing, dtype=np.float32)
    alpha = pixels[..., 3:] / 255
    thing_color = (pixels[..., :3] * alpha).sum((0, 1)) / alpha.sum()
    backdrop_color = np.asarray(backdrop, dtype=np.float32).mean((0, 1))
    return float(np.abs(thing_color - backdrop_color).max()) < 40


def sample_scene(renderer: SceneRenderer, rng: np.random.Generator) -> tuple[Spec, Image.Image]:
    """Sample a training scene and render it; never a held-out one or a thing hidden by its background."""
    while True:
        spec = sample_spec(rng)
        if spec.held_out:
            continue
        thing, backdrop = renderer.thing(spec), renderer.backdrop(spec.background, rng)
        if not clashes(thing, backdrop):
            return spec, renderer.compose(thing, backdrop, rng)


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
