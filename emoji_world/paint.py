"""New colors and patterns for an icon that keep its shading: luminance decides light and dark, the hue is replaced."""

import numpy as np
from PIL import Image

from emoji_world.world import COLORS, RGB

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_DARK = 0.08  # eyes and outlines stay dark


def recolor(icon: Image.Image, color: str) -> Image.Image:
    """Return the icon (RGBA) in shades of one named color."""
    pixels = np.asarray(icon, dtype=np.float32)
    return _from_array(_shades(pixels, COLORS[color]), pixels[..., 3])


def add_pattern(icon: Image.Image, pattern: str, ink: str) -> Image.Image:
    """Return the icon with stripes, checks or spots of the color `ink`, shaded like the icon."""
    pixels = np.asarray(icon, dtype=np.float32)
    mask = figures(pattern, icon.size[0], 8)[..., None] * 0.88
    return _from_array(pixels[..., :3] * (1 - mask) + _shades(pixels, COLORS[ink]) * mask, pixels[..., 3])


def figures(pattern: str, size: int, count: int, phase: float = 0.0) -> np.ndarray:
    """Return a mask of shape (size, size) in 0 … 1 with `count` periods of stripes, checks or spots."""
    fine = np.arange(2 * size, dtype=np.float32) / (2 * size) * count + phase
    x, y = np.meshgrid(fine, fine)
    if pattern == "striped":
        mask = (x + y) % 1.0 < 0.5
    elif pattern == "checkered":
        mask = (np.floor(x) + np.floor(y)) % 2 == 0
    else:
        row = np.floor(y)
        mask = ((x + row / 2) % 1.0 - 0.5) ** 2 + (y % 1.0 - 0.5) ** 2 < 0.1
    return mask.reshape(size, 2, size, 2).mean((1, 3), dtype=np.float32)


def _shades(pixels: np.ndarray, color: RGB) -> np.ndarray:
    """Map dark pixels to black, the icon's median luminance to the color, light pixels to a tint of the color."""
    light = pixels[..., :3] @ _LUMA / 255
    middle = float(np.clip(np.median(light[pixels[..., 3] > 128]), 0.3, 0.8))
    hue = np.array(color, dtype=np.float32)
    shade = np.clip((light - _DARK) / (middle - _DARK), 0, 1)[..., None] ** 0.8
    tint = np.clip((light - middle) / (1 - middle), 0, 1)[..., None] * 0.55
    return hue * shade + (255 - hue) * tint


def _from_array(rgb: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([rgb, alpha]).round().clip(0, 255).astype(np.uint8))
