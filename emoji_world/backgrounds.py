"""Backgrounds: plain colors, patterns and gradients in two colors, and a dozen recognizable locations.

Each location is drawn with Pillow at twice the size. All variation comes from `rng`.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from emoji_world.paint import figures
from emoji_world.world import COLORS, RGB

SIZE = 128
_FINE = 2 * SIZE


def plain(color: str) -> Image.Image:
    """Return an image of one color."""
    return Image.new("RGB", (SIZE, SIZE), COLORS[color])


def backdrop(kind: str, first: str, second: str, rng: np.random.Generator) -> Image.Image:
    """Render stripes, checks, spots or a vertical gradient from the first color to the second."""
    if kind == "gradient":
        return _vertical(COLORS[first], COLORS[second]).resize((SIZE, SIZE))
    mask = figures(kind, SIZE, int(rng.integers(5, 9)), rng.random())[..., None]
    mixed = np.array(COLORS[first]) * (1 - mask) + np.array(COLORS[second]) * mask
    return Image.fromarray(mixed.astype(np.uint8))


def location(name: str, rng: np.random.Generator) -> Image.Image:
    """Render one of `world.LOCATIONS`."""
    return _RENDERERS[name](rng).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _vertical(*colors: RGB) -> Image.Image:
    """Return an image of twice the size with a gradient through the colors from top to bottom."""
    stops = np.linspace(0, 1, len(colors))
    heights = np.linspace(0, 1, _FINE)
    column = np.stack([np.interp(heights, stops, [c[i] for c in colors]) for i in range(3)], -1)
    return Image.fromarray(np.broadcast_to(column[:, None], (_FINE, _FINE, 3)).astype(np.uint8))


def _varied(color: RGB, rng: np.random.Generator, amount: int = 14) -> RGB:
    r, g, b = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in color)
    return r, g, b


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: RGB) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _hill(draw: ImageDraw.ImageDraw, base: float, swing: float, color: RGB, rng: np.random.Generator) -> None:
    """Fill the area below a soft wave; `base` (its mean height) and `swing` are fractions of the image."""
    x = np.arange(0, _FINE + 4, 4)
    wave = np.sin(x / _FINE * rng.uniform(3, 6) + rng.uniform(0, 6.3)) * swing
    top = (base + wave) * _FINE
    draw.polygon([(0, _FINE), *zip(x.tolist(), top.tolist(), strict=True), (_FINE, _FINE)], fill=color)


def _scatter(rng: np.random.Generator, count: int, top: float = 0.0, bottom: float = 1.0) -> list[tuple[float, float]]:
    return [(rng.uniform(0, _FINE), rng.uniform(top, bottom) * _FINE) for _ in range(count)]


def _beach(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((120, 200, 250), rng), (190, 230, 252))
    draw = ImageDraw.Draw(image)
    horizon = rng.uniform(0.34, 0.44)
    draw.rectangle((0, horizon * _FINE, _FINE, _FINE), fill=_varied((28, 140, 200), rng))
    _hill(draw, horizon + 0.18, 0.02, (226, 246, 250), rng)
    _hill(draw, horizon + 0.22, 0.02, _varied((240, 214, 150), rng), rng)
    _disc(draw, rng.uniform(0.1, 0.9) * _FINE, 0.13 * _FINE, 20, (255, 236, 120))
    return image


def _snow(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((150, 185, 220), rng), (214, 228, 242))
    draw = ImageDraw.Draw(image)
    _hill(draw, 0.5, 0.06, (224, 234, 246), rng)
    _hill(draw, 0.66, 0.05, (246, 250, 255), rng)
    for x, y in _scatter(rng, 60):
        _disc(draw, x, y, rng.uniform(2, 4.5), (255, 255, 255))
    return image


def _meadow(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((110, 190, 250), rng), (200, 232, 250))
    draw = ImageDraw.Draw(image)
    _hill(draw, 0.45, 0.05, _varied((120, 190, 80), rng), rng)
    _hill(draw, 0.58, 0.04, _varied((84, 164, 60), rng), rng)
    for x, y in _scatter(rng, 26, 0.66, 0.98):
        petal = [(255, 255, 255), (250, 220, 70), (240, 110, 130)][rng.integers(3)]
        _disc(draw, x, y, 4, petal)
    return image


def _desert(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((250, 200, 120), rng), (254, 232, 180))
    draw = ImageDraw.Draw(image)
    _disc(draw, rng.uniform(0.1, 0.9) * _FINE, 0.14 * _FINE, 22, (255, 246, 200))
    for base, color in ((0.48, (226, 166, 92)), (0.62, (214, 146, 74)), (0.8, (198, 126, 60))):
        _hill(draw, base, 0.05, _varied(color, rng, 8), rng)
    return image


def _night(rng: np.random.Generator) -> Image.Image:
    image = _vertical((14, 18, 56), _varied((52, 62, 120), rng))
    draw = ImageDraw.Draw(image)
    for x, y in _scatter(rng, 30, 0, 0.6):
        _disc(draw, x, y, rng.uniform(1, 2.2), (255, 250, 220))
    x, y = rng.uniform(0.12, 0.88) * _FINE, 0.15 * _FINE
    _disc(draw, x, y, 24, (255, 244, 190))
    _disc(draw, x + 10, y - 6, 20, (20, 25, 66))
    _hill(draw, 0.72, 0.05, (22, 34, 58), rng)
    _hill(draw, 0.86, 0.03, (12, 20, 38), rng)
    return image


def _space(rng: np.random.Generator) -> Image.Image:
    image = _vertical((8, 6, 24), _varied((34, 12, 58), rng))
    draw = ImageDraw.Draw(image)
    for x, y in _scatter(rng, 4):
        _disc(draw, x, y, rng.uniform(30, 60), _varied((52, 22, 92), rng))
    image = image.filter(ImageFilter.GaussianBlur(24))
    draw = ImageDraw.Draw(image)
    for x, y in _scatter(rng, 70):
        _disc(draw, x, y, rng.uniform(0.8, 2.4), (255, 255, 255))
    x, y = rng.uniform(0.1, 0.9) * _FINE, rng.choice([0.14, 0.86]) * _FINE
    color = [(226, 130, 70), (90, 170, 210), (200, 90, 120)][rng.integers(3)]
    _disc(draw, x, y, 24, color)
    draw.line((x - 40, y + 10, x + 40, y - 10), fill=(236, 220, 180), width=5)
    return image


def _water(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((70, 190, 220), rng), (16, 70, 140))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(4):
        x = rng.uniform(0, _FINE)
        draw.polygon([(x, 0), (x + 24, 0), (x - 20, _FINE), (x - 90, _FINE)], fill=(255, 255, 255, 28))
    _hill(draw, 0.9, 0.02, (190, 170, 120), rng)
    for x in rng.uniform(0, _FINE, 6):
        draw.line((x, 0.94 * _FINE, x + rng.uniform(-14, 14), rng.uniform(0.6, 0.8) * _FINE), (30, 130, 80), 7)
    for x, y in _scatter(rng, 14):
        radius = rng.uniform(3, 8)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=(220, 245, 255, 220), width=2)
    return image


def _sunset(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((92, 50, 120), rng), (232, 92, 90), (255, 180, 80))
    draw = ImageDraw.Draw(image)
    _disc(draw, rng.uniform(0.2, 0.8) * _FINE, 0.66 * _FINE, 46, (255, 226, 120))
    draw.rectangle((0, 0.68 * _FINE, _FINE, _FINE), fill=_varied((66, 34, 84), rng))
    for x, y in _scatter(rng, 18, 0.72, 0.97):
        draw.line((x, y, x + rng.uniform(16, 44), y), fill=(244, 150, 90), width=4)
    return image


def _wood(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_FINE, _FINE))
    draw = ImageDraw.Draw(image)
    width = int(rng.integers(34, 48))
    for left in range(-int(rng.integers(width)), _FINE, width):
        board = _varied((176, 118, 66), rng)
        draw.rectangle((left, 0, left + width, _FINE), fill=board)
        for x in rng.uniform(left + 4, left + width - 4, 3):
            draw.line((x, 0, x + rng.uniform(-5, 5), _FINE), fill=_varied((150, 96, 50), rng, 6), width=2)
        draw.line((left, 0, left, _FINE), fill=(92, 56, 28), width=3)
    return image


def _brick(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_FINE, _FINE), _varied((206, 196, 184), rng))
    draw = ImageDraw.Draw(image)
    height = int(rng.integers(24, 32))
    width = 2 * height
    for row, top in enumerate(range(0, _FINE, height)):
        for left in range(-(row % 2) * height - int(rng.integers(3)), _FINE, width):
            brick = _varied((172, 70, 52), rng)
            draw.rectangle((left + 2, top + 2, left + width - 3, top + height - 3), fill=brick)
    return image


def _forest(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((170, 214, 180), rng), (120, 180, 130))
    draw = ImageDraw.Draw(image)
    for shade, count, foot in (((92, 150, 96), 9, 0.78), ((44, 104, 58), 7, 0.86)):
        for x in rng.permutation(np.linspace(0, _FINE, count)) + rng.uniform(-10, 10):
            height, half = rng.uniform(0.5, 0.75) * _FINE, rng.uniform(22, 34)
            bottom = foot * _FINE
            draw.rectangle((x - 5, bottom, x + 5, _FINE), fill=(92, 62, 40))
            draw.polygon([(x - half, bottom), (x + half, bottom), (x, bottom - height)], fill=_varied(shade, rng, 8))
    _hill(draw, 0.9, 0.02, _varied((70, 110, 52), rng), rng)
    return image


def _city(rng: np.random.Generator) -> Image.Image:
    image = _vertical(_varied((150, 200, 236), rng), (226, 236, 244))
    draw = ImageDraw.Draw(image)
    left = -8.0
    while left < _FINE:
        width, top = rng.uniform(34, 54), rng.uniform(0.15, 0.55) * _FINE
        draw.rectangle((left, top, left + width, _FINE), fill=_varied((112, 122, 142), rng, 24))
        for y in np.arange(top + 8, 0.82 * _FINE, 16):
            for x in np.arange(left + 6, left + width - 8, 13):
                draw.rectangle((x, y, x + 6, y + 8), fill=(252, 232, 150) if rng.random() < 0.5 else (70, 80, 104))
        left += width + 3
    draw.rectangle((0, 0.84 * _FINE, _FINE, _FINE), fill=(78, 80, 88))
    for x in range(0, _FINE, 44):
        draw.rectangle((x, 0.915 * _FINE, x + 24, 0.935 * _FINE), fill=(240, 240, 230))
    return image


_RENDERERS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "beach": _beach,
    "snow": _snow,
    "meadow": _meadow,
    "desert": _desert,
    "night": _night,
    "space": _space,
    "water": _water,
    "sunset": _sunset,
    "wood": _wood,
    "brick": _brick,
    "forest": _forest,
    "city": _city,
}
