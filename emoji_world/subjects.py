"""The subjects: new individuals of known kinds, in combinations of color, pattern and accessory new to the base.

Each has a folder: five images to train on, `held_out/` with four more for scoring, and `subject.toml`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tomli_w
from PIL import Image

from emoji_world import paint
from emoji_world.scenes import Background, SceneRenderer

TOKEN = "sks"
_STYLE = "3d"


class Accessory(NamedTuple):
    """An accessory: its center and width in fractions of the image, its tilt in degrees."""

    name: str
    x: float
    y: float
    width: float
    tilt: float = 0.0
    color: str | None = None


class Subject(NamedTuple):
    """One individual. `size` and `drop` shrink and lower the icon to make room for the accessories."""

    kind: str
    description: str
    accessories: tuple[Accessory, ...]
    color: str | None = None
    pattern: tuple[str, str] | None = None  # the pattern and its ink
    size: float = 1.0
    drop: float = 0.0


SUBJECTS: dict[str, Subject] = {
    "tiger": Subject(
        "tiger", "a green tiger with a red scarf", (Accessory("scarf", 0.5, 0.77, 0.44),), "green", None, 0.88
    ),
    "cat": Subject(
        "cat", "a purple cat with a straw hat", (Accessory("straw hat", 0.5, 0.19, 0.5),), "purple", None, 0.9, 0.1
    ),
    "teapot": Subject(
        "teapot",
        "a blue teapot with orange stripes and a heart",
        (Accessory("heart", 0.52, 0.62, 0.3),),
        "blue",
        ("striped", "orange"),
    ),
    "car": Subject(
        "car", "a pink car with a star on its door", (Accessory("star", 0.47, 0.6, 0.3),), "pink", ("striped", "green")
    ),
    "robot": Subject(
        "robot",
        "an orange robot with a blue ribbon",
        (Accessory("ribbon", 0.5, 0.15, 0.4, 0, "blue"),),
        "orange",
        ("checkered", "yellow"),
        0.88,
        0.12,
    ),
    "penguin": Subject(
        "penguin",
        "a red penguin with a cap and sunglasses",
        (Accessory("cap", 0.5, 0.16, 0.42), Accessory("sunglasses", 0.5, 0.36, 0.4)),
        "red",
        None,
        0.88,
        0.12,
    ),
}

_TRAINING = (
    Background(kind="plain", colors=("white",)),
    Background(kind="plain", colors=("yellow",)),
    Background(kind="plain", colors=("gray",)),
    Background(kind="meadow"),
    Background(kind="wood"),
)
_HELD_OUT = (
    Background(kind="plain", colors=("blue",)),
    Background(kind="beach"),
    Background(kind="night"),
    Background(kind="plain", colors=("white",)),
)


def render(subject: Subject, renderer: SceneRenderer) -> Image.Image:
    """Render the individual as an RGBA image of the icons' size."""
    icon = renderer.icons[_STYLE, subject.kind]
    if subject.color:
        icon = paint.recolor(icon, subject.color)
    if subject.pattern:
        icon = paint.add_pattern(icon, *subject.pattern)
    canvas = Image.new("RGBA", icon.size)
    _paste(canvas, icon, 0.5, 0.5 * subject.size + subject.drop, subject.size)
    for worn in subject.accessories:
        thing = renderer.icons[_STYLE, worn.name]
        thing = paint.recolor(thing, worn.color) if worn.color else thing
        _paste(canvas, thing.rotate(worn.tilt, Image.Resampling.BICUBIC), worn.x, worn.y, worn.width)
    return canvas


def write(renderer: SceneRenderer, folder: Path) -> None:
    """Write every subject's folder below `folder`."""
    for number, (name, subject) in enumerate(SUBJECTS.items()):
        rng = np.random.default_rng((7, number))
        thing = render(subject, renderer)
        for target, backgrounds in ((folder / name, _TRAINING), (folder / name / "held_out", _HELD_OUT)):
            target.mkdir(parents=True, exist_ok=True)
            for index, background in enumerate(backgrounds):
                renderer.compose(thing, renderer.backdrop(background, rng), rng).save(
                    target / f"{index}.png", optimize=True
                )
        about = {
            "description": subject.description,
            "class": subject.kind,
            "instance_prompt": f"a 3d render of a {TOKEN} {subject.kind}",
            "class_prompt": f"a 3d render of a {subject.kind}",
            "license": "MIT, drawn by emoji_world from Microsoft's Fluent emoji",
        }
        (folder / name / "subject.toml").write_text(tomli_w.dumps(about))


def _paste(canvas: Image.Image, thing: Image.Image, x: float, y: float, width: float) -> None:
    side = round(width * canvas.size[0])
    small = thing.resize((side, side), Image.Resampling.LANCZOS)
    canvas.alpha_composite(small, (round(x * canvas.size[0] - side / 2), round(y * canvas.size[1] - side / 2)))
