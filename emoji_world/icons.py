"""The icons: fetched from npm, verified by hash, trimmed and stored as square RGBA images.

Microsoft's Fluent emoji in two renderings, both under the MIT license: the 3D set (WebP) and the flat set (SVG).
"""

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from emoji_world import world
from hra_diffusion.errors import HRAError

SIZE = 128
FILL = 0.96  # of the square, taken by the longer side

# npm package → its integrity (sha512, base64) in the registry.
PACKAGES = {
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="
    ),
    "@iconify-json/fluent-emoji-flat@1.2.6": (
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="
    ),
}

Icons = dict[tuple[str, str], Image.Image]


def fetch(package: str, folder: Path) -> Path:
    """Download an npm package into `folder`, once; return the tarball's path.

    Raises:
        HRAError: the tarball has another hash.
    """
    name, _, version = package.rpartition("@")
    tarball = folder / f"{name.strip('@').replace('/', '-')}-{version}.tgz"
    if not tarball.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != PACKAGES[package]:
        raise HRAError(f"{tarball} has the sha512 {digest}, expected {PACKAGES[package]}; delete it and run again.")
    return tarball


def _spellings(code: str) -> tuple[str, str]:
    return code, f"{code}-fe0f"


def _read_3d(tarball: tarfile.TarFile, codes: list[str]) -> dict[str, Image.Image]:
    members = {member.name: member for member in tarball.getmembers()}
    images: dict[str, Image.Image] = {}
    for code in codes:
        name = next(n for s in _spellings(code) if (n := f"package/assets/{s}.webp") in members)
        stream = tarball.extractfile(members[name])
        assert stream is not None
        images[code] = Image.open(io.BytesIO(stream.read())).convert("RGBA")
    return images


def _read_flat(tarball: tarfile.TarFile, codes: list[str]) -> dict[str, Image.Image]:
    import resvg_py

    def table(name: str) -> dict:
        stream = tarball.extractfile(f"package/{name}.json")
        assert stream is not None
        return json.load(stream)

    characters, drawings = table("chars"), table("icons")
    images: dict[str, Image.Image] = {}
    for code in codes:
        drawing = drawings["icons"][next(characters[s] for s in _spellings(code) if s in characters)]
        width, height = (drawing.get(side, drawings.get(side, 32)) for side in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256" viewBox="0 0 {width} {height}">'
            f"{drawing['body']}</svg>"
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
        images[code] = Image.open(io.BytesIO(png)).convert("RGBA")
    return images


def _square(image: Image.Image) -> Image.Image:
    """Trim the transparent border and center the rest in a square of SIZE pixels."""
    trimmed = image.crop(Image.fromarray(np.asarray(image)[..., 3]).point(lambda a: 255 * (a > 8)).getbbox())
    scale = FILL * SIZE / max(trimmed.size)
    width, height = (max(1, round(side * scale)) for side in trimmed.size)
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(trimmed.resize((width, height), Image.Resampling.LANCZOS), ((SIZE - width) // 2, (SIZE - height) // 2))
    return square


def prepare(folder: Path) -> Path:
    """Fetch and crop all icons of the world into `folder`/icons, once; return the icons' folder."""
    target = folder / "icons"
    if target.exists():
        return target
    names = world.KINDS | world.HELD_OUT_KINDS | world.ACCESSORIES
    partial = folder / f"icons.{os.getpid()}"
    for (style, read), package in zip({"3d": _read_3d, "flat": _read_flat}.items(), PACKAGES, strict=True):
        (partial / style).mkdir(parents=True, exist_ok=True)
        with tarfile.open(fetch(package, folder / "npm")) as tarball:
            images = read(tarball, list(names.values()))
        for name, code in names.items():
            _square(images[code]).save(partial / style / f"{name}.png")
    partial.rename(target)
    return target


def load(folder: Path) -> Icons:
    """Return the icons that `prepare` wrote to `folder`: (style, name) → RGBA image of SIZE × SIZE."""
    return {
        (path.parent.name, path.stem): Image.open(path).convert("RGBA")
        for style in world.STYLES
        for path in sorted((folder / "icons" / style).glob("*.png"))
    }
