"""Odd image files, written byte by byte if no library writes them: decoded exactly, or refused by name.

Expected pixels are those that the file was written from, rounded to 8 bits; for lossy formats, those that the library
alone decodes. Files with 16 bits and alpha are composed from the upper 8 bits, as in libpng's png_set_strip_16.
"""

import struct
import sys
import zipfile
import zlib
from contextlib import suppress
from io import BytesIO
from itertools import product

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from hra_diffusion.errors import ImageError
from hra_diffusion.formats.images import read_image
from hra_diffusion.training.data.dataset import check_images
from hra_diffusion.training.data.inventory import image_files

BACKGROUND = (200, 100, 50)
WIDTH, HEIGHT = 23, 17
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GRAY = RGB[..., 0]
ALPHA = RNG.choice(np.array([0, 1, 77, 200, 255], np.uint8), (HEIGHT, WIDTH))
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)  # 16 bits a channel
SMOOTH = np.asarray(Image.fromarray(RGB[:4, :4]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
REFUSED = None


def rgb(gray):
    return np.repeat(np.asarray(gray)[..., None], 3, 2)


def over(colors, alpha):
    share = np.asarray(alpha, float)[..., None] / 255
    return share * colors + (1 - share) * np.array(BACKGROUND)


# ---- PNG (W3C PNG specification) ----


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(values, bits: int) -> bytes:
    """Return rows of samples with ``bits`` bits, padded to whole bytes, each row after its filter byte."""
    rows = np.asarray(values).reshape(len(values), -1)
    if bits == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    digits = (rows[..., None].astype(np.uint8) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    return b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in digits)


def png(samples, bits: int, color_type: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    head = struct.pack(">IIBBBBB", *np.shape(samples)[1::-1], bits, color_type, 0, 0, interlaced)
    steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in steps] if interlaced else [samples]
    data = zlib.compress(b"".join(packed(rows, bits) for rows in passes))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def key(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))


PALETTE = RNG.integers(0, 256, (256, 3), np.uint8)


def pngs():
    for bits in (1, 2, 4, 8, 16):
        gray = DEEP[..., 0] >> (16 - bits)
        scaled = gray * (255 / (2**bits - 1))
        yield f"gray-{bits}.png", png(gray, bits, 0), rgb(scaled)
        picked = int(gray[3, 3])
        yield f"gray-{bits}-key.png", png(gray, bits, 0, key(picked)), over(rgb(scaled), 255 * (gray != picked))
    for bits in (1, 2, 4, 8):
        index = (DEEP[..., 0] >> (16 - bits)).astype(np.uint8)
        colors, alphas = chunk(b"PLTE", PALETTE[: 2**bits].tobytes()), ALPHA.reshape(-1)[: 2**bits]
        yield f"palette-{bits}.png", png(index, bits, 3, colors), PALETTE[index]
        transparent = png(index, bits, 3, colors, chunk(b"tRNS", alphas.tobytes()))
        yield f"palette-{bits}-alpha.png", transparent, over(PALETTE[index], alphas[index])
    for bits, whole in ((8, DEEP >> 8), (16, DEEP)):
        scaled = whole / (2**bits - 1) * 255
        at = tuple(int(value) for value in whole[3, 3, :3])
        is_opaque = (whole[..., :3] != at).any(2)
        yield f"rgb-{bits}.png", png(whole[..., :3], bits, 2), scaled[..., :3]
        yield f"rgb-{bits}-key.png", png(whole[..., :3], bits, 2, key(*at)), over(scaled[..., :3], 255 * is_opaque)
        yield f"rgb-{bits}-interlaced.png", png(whole[..., :3], bits, 2, interlaced=True), scaled[..., :3]
        yield f"rgba-{bits}.png", png(whole, bits, 6), over(whole[..., :3] >> (bits - 8), whole[..., 3] >> (bits - 8))
        yield (
            f"la-{bits}.png",
            png(whole[..., :2], bits, 4),
            over(rgb(whole[..., 0]) >> (bits - 8), whole[..., 1] >> (bits - 8)),
        )
    good = png(RGB, 8, 2)
    yield "garbage-after.png", good + b"garbage", RGB
    yield "half.png", good[: len(good) // 2], REFUSED
    yield "checksum.png", good[:60] + b"\xff" + good[61:], REFUSED
    yield "nothing-inside.png", good[:33] + chunk(b"IEND", b""), REFUSED
    yield "no-width.png", good[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0)) + good[33:], REFUSED
    large = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    yield "bomb.png", good[:8] + chunk(b"IHDR", large) + good[33:], REFUSED
    texts = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    yield "text-bomb.png", good[:33] + texts + good[33:], REFUSED


# ---- ICC profiles (ICC.1:2010) ----

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RED_IS_GREEN = SRGB.replace(b"rXYZ", b"-XYZ", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"-XYZ", b"gXYZ", 1)
D50 = np.array([0.9642, 1.0, 0.8249])


def s15(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def icc(space: bytes, connection: bytes, **tags: bytes) -> bytes:
    tags["desc"] = b"desc" + bytes(4) + struct.pack(">I", 2) + b"a\0" + bytes(78)
    tags["wtpt"] = b"XYZ " + bytes(4) + s15(*D50)
    directory, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        directory += name.encode() + struct.pack(">II", start + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    created = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    head = (b"", 0x02400000, b"prtr", space, connection, created, b"acsp", b"", 0, b"", b"", 0, 0)
    head = struct.pack(">I4sI4s4s4s12s4s4sI4s4sQI", start + len(data), *head) + s15(*D50) + bytes(48)
    return head + directory + data


DARK_GRAY = icc(b"GRAY", b"XYZ ", kTRC=b"curv" + bytes(4) + struct.pack(">IH", 1, 461))  # gamma 461 / 256

CORNERS = np.array(list(product((0, 255), repeat=4)), np.uint8)  # of CMYK; LAB holds their colors
LAB = np.stack([RNG.integers(40, 220, 16), *RNG.integers(108, 148, (2, 16))], 1).astype(np.uint8)
LAB[0], LAB[-1] = (255, 128, 128), (0, 128, 128)  # paper is white, all inks at once are black
STRAIGHT = bytes(range(256))
INKS = icc(
    b"CMYK",
    b"Lab ",
    A2B0=b"mft1"
    + bytes(4)
    + bytes([4, 3, 2, 0])
    + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    + STRAIGHT * 4
    + LAB.tobytes()
    + STRAIGHT * 3,
)


def encoded(linear):
    """Apply sRGB's transfer curve (IEC 61966-2-1), to 0 … 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def lab_to_srgb(lab):
    """Convert CIELAB, with 8 bits as in ICC profiles, through XYZ at D50 (Lindbloom's adapted matrix)."""
    light, a, b = np.moveaxis(lab.astype(float), -1, 0)
    y = (light * 100 / 255 + 16) / 116
    f = np.stack([y + (a - 128) / 500, y, y - (b - 128) / 200], -1)
    xyz = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    to_rgb = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    return encoded(xyz @ np.array(to_rgb).T)


def profiles():
    yield "srgb.png", png(RGB, 8, 2, iccp(SRGB)), RGB
    yield "red-is-green.png", png(RGB, 8, 2, iccp(RED_IS_GREEN)), RGB[..., [1, 0, 2]]
    yield (
        "red-is-green-palette.png",
        png(GRAY, 8, 3, iccp(RED_IS_GREEN), chunk(b"PLTE", PALETTE.tobytes())),
        PALETTE[GRAY][..., [1, 0, 2]],
    )
    yield (
        "red-is-green-alpha.png",
        png(np.dstack([RGB, ALPHA]), 8, 6, iccp(RED_IS_GREEN)),
        over(RGB[..., [1, 0, 2]], ALPHA),
    )
    yield "red-is-green.webp", by_pillow(RGB, "WEBP", lossless=True, icc_profile=RED_IS_GREEN), RGB[..., [1, 0, 2]]
    yield "gray-in-rgb-profile.png", png(GRAY, 8, 0, iccp(SRGB)), rgb(GRAY)
    yield "rgb-in-gray-profile.png", png(RGB, 8, 2, iccp(DARK_GRAY)), RGB
    yield "dark-gray.png", png(GRAY, 8, 0, iccp(DARK_GRAY)), rgb(encoded((GRAY / 255) ** (461 / 256)))
    yield (
        "dark-gray-alpha.png",
        png(np.dstack([GRAY, ALPHA]), 8, 4, iccp(DARK_GRAY)),
        over(rgb(encoded((GRAY / 255) ** (461 / 256))), ALPHA),
    )
    yield (
        "dark-gray-16.png",
        png(GRAY.astype(np.uint16) * 257, 16, 0, iccp(DARK_GRAY)),
        rgb(encoded((GRAY / 255) ** (461 / 256))),
    )
    yield "broken-profile.png", png(RGB, 8, 2, iccp(SRGB[:200])), RGB
    inks = CORNERS.reshape(4, 4, 4)
    yield "inks.tiff", by_pillow(inks, "TIFF", mode="CMYK", icc_profile=INKS), lab_to_srgb(LAB).reshape(4, 4, 3)
    solid = np.broadcast_to(CORNERS[5], (16, 16, 4))
    yield (
        "inks.jpg",
        by_pillow(solid, "JPEG", mode="CMYK", quality=100, icc_profile=INKS),
        np.broadcast_to(lab_to_srgb(LAB[5]), (16, 16, 3)),
    )


# ---- TIFF (TIFF 6.0) ----


def tiff(
    samples,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    data: bytes | None = None,
    tags: dict[int, int] | None = None,
) -> bytes:
    """Return a TIFF of one uncompressed strip, with additional ``tags``."""
    height, width, channels = samples.shape
    data = samples.astype(f"{order}{samples.dtype.str[1:]}").tobytes() if data is None else data
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: channels, 278: height}
    fields |= {279: len(data)} | (tags or {})
    after = 8 + 2 + 12 * len(fields) + 4
    fields[273] = after + 2 * channels
    entries = b""
    for tag, value in sorted(fields.items()):
        if tag == 258 and channels > 2:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, after)
        elif tag == 258:
            entries += struct.pack(
                f"{order}HHI4s", tag, 3, channels, struct.pack(f"{order}{channels}H", *[bits] * channels)
            )
        else:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    magic = b"II" if order == "<" else b"MM"
    depths = struct.pack(f"{order}{channels}H", *[bits] * channels)
    return magic + struct.pack(f"{order}HIH", 42, 8, len(fields)) + entries + bytes(4) + depths + data


def tiffs():
    deep, gray = DEEP[..., :3], DEEP[..., :1]
    for order in "<>":
        name = {"<": "intel", ">": "motorola"}[order]
        yield f"rgb-16-{name}.tiff", tiff(deep, 16, 2, order=order), deep / 257
        yield f"gray-16-{name}.tiff", tiff(gray, 16, 1, order=order), rgb(gray[..., 0] / 257)
    yield "white-is-zero-16.tiff", tiff(gray, 16, 0), rgb(255 - gray[..., 0] / 257)
    yield "white-is-zero.tiff", tiff(RGB[..., :1], 8, 0), rgb(255 - GRAY)
    yield "rgba-16.tiff", tiff(DEEP, 16, 2, tags={338: 2}), over(deep >> 8, DEEP[..., 3] >> 8)
    yield "not-alpha.tiff", tiff(np.dstack([RGB, ALPHA]), 8, 2, tags={338: 0}), RGB
    premultiplied = np.rint(RGB * (ALPHA[..., None] / 255)).astype(np.uint8)
    yield (
        "premultiplied.tiff",
        tiff(np.dstack([premultiplied, ALPHA]), 8, 2, tags={338: 1}),
        premultiplied + over(0 * RGB, ALPHA),
    )
    twelve = DEEP[:, :22, 0] >> 4
    bits = ((twelve[..., None] >> np.arange(11, -1, -1)) & 1).astype(np.uint8).reshape(HEIGHT, -1)
    yield "gray-12.tiff", tiff(twelve[..., None], 12, 1, data=np.packbits(bits, 1).tobytes()), rgb(twelve / 4095 * 255)
    yield "turned.tiff", tiff(np.ascontiguousarray(np.rot90(RGB)), 8, 2, tags={274: 6}), RGB
    yield "float.tiff", tiff(np.ones((4, 4, 1), np.float32), 32, 1, tags={339: 3}), REFUSED
    yield "long.tiff", tiff(np.ones((4, 4, 1), np.uint32), 32, 1), REFUSED
    yield "signed.tiff", tiff(np.ones((4, 4, 1), np.int16), 16, 1, tags={339: 2}), REFUSED
    whole = tiff(RGB, 8, 2)
    yield "short.tiff", whole[:-200], REFUSED
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"{compression}.tiff", by_pillow(RGB, "TIFF", compression=compression), RGB
    yield "group4.tiff", by_pillow(GRAY > 127, "TIFF", compression="group4"), rgb(255 * (GRAY > 127))
    yield "two-pages.tiff", by_pillow(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), RGB
    lab = np.broadcast_to(LAB[:5, None], (5, 3, 3)).astype(np.uint8)
    yield "lab.tiff", by_pillow(lab ^ np.array([0, 128, 128], np.uint8), "TIFF", mode="LAB"), lab_to_srgb(lab)


# ---- BMP ----


def bmp(data: bytes, *, bits: int, height: int, compression: int = 0, tables: bytes = b"", colors: int = 0) -> bytes:
    start = 54 + len(tables)
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, len(data), 2835, 2835, colors, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + tables + data


def bmps():
    yield "rgb.bmp", by_pillow(RGB, "BMP"), RGB
    yield "gray.bmp", by_pillow(GRAY, "BMP"), rgb(GRAY)
    yield "bits.bmp", by_pillow(GRAY > 127, "BMP"), rgb(255 * (GRAY > 127))
    rows = np.pad(RGB[..., ::-1], ((0, 0), (0, 1), (0, 0))).reshape(HEIGHT, -1)[:, : -(-3 * WIDTH // 4) * 4]
    yield "top-down.bmp", bmp(rows.tobytes(), bits=24, height=-HEIGHT), RGB
    five = RGB >> np.array([3, 2, 3], np.uint8)
    words = five[..., 0].astype(np.uint16) << 11 | five[..., 1].astype(np.uint16) << 5 | five[..., 2]
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    rows = np.pad(words, ((0, 0), (0, 1)))[::-1].astype("<u2")
    scaled = five * (255 / np.array([31, 63, 31]))
    yield "565.bmp", bmp(rows.tobytes(), bits=16, height=HEIGHT, compression=3, tables=masks), scaled
    runs = b"".join(bytes([1, value]) for value in GRAY[0]) + b"\0\0"
    gray_palette = bytes(value for gray in range(256) for value in (gray, gray, gray, 0))
    lines = bmp(runs * HEIGHT + b"\0\1", bits=8, height=HEIGHT, compression=1, tables=gray_palette, colors=256)
    yield "runs.bmp", lines, rgb(np.broadcast_to(GRAY[0], GRAY.shape))
    yield "short.bmp", by_pillow(RGB, "BMP")[:-100], REFUSED


# ---- formats that a library writes ----


def by_pillow(pixels, kind: str, mode: str | None = None, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    if mode:
        image = Image.frombytes(mode, image.size, np.ascontiguousarray(pixels).tobytes())
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bare(data: bytes):
    """Decode with Pillow alone."""
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def jpegs():
    good = by_pillow(SMOOTH, "JPEG", quality=90)
    plain = bare(good)
    yield "plain.jpg", good, plain
    yield "name-without-ending", good, plain
    yield "png-by-name.png", good, plain
    for options in ({"progressive": True}, {"subsampling": 2}, {"keep_rgb": True}, {"restart_marker_rows": 1}):
        data = by_pillow(SMOOTH, "JPEG", **options)
        yield f"{next(iter(options))}.jpg", data, bare(data)
    gray = by_pillow(SMOOTH[..., 0], "JPEG")
    yield "gray.jpg", gray, bare(gray)
    inks = by_pillow(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=100)
    yield "cmyk.jpg", inks, bare(inks)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = by_pillow(SMOOTH, "JPEG", quality=90, exif=exif)
    yield "turned.jpg", turned, np.rot90(plain, -1)
    yield "broken-exif.jpg", by_pillow(SMOOTH, "JPEG", quality=90, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff"), plain
    yield "no-exif-at-all.jpg", by_pillow(SMOOTH, "JPEG", quality=90, exif=b"Exif\0\0nonsense"), plain
    twins = by_pillow(SMOOTH, "MPO", quality=90, save_all=True, append_images=[Image.new("RGB", (8, 8))])
    yield "twins.jpg", twins, plain
    yield "garbage-after.jpg", good + b"garbage" * 100, plain
    yield "half.jpg", good[: len(good) // 2], REFUSED
    yield "head.jpg", good[:30], REFUSED


def modern():
    frames = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))], "duration": 100}
    alpha = np.dstack([RGB, np.maximum(ALPHA, 1)])  # lossless WebP drops the colors of fully transparent pixels
    yield "lossless.webp", by_pillow(RGB, "WEBP", lossless=True), RGB
    yield "alpha.webp", by_pillow(alpha, "WEBP", lossless=True), over(RGB, alpha[..., 3])
    yield "moving.webp", by_pillow(RGB, "WEBP", lossless=True, **frames), RGB
    lossy = by_pillow(SMOOTH, "WEBP")
    yield "lossy.webp", lossy, bare(lossy)
    yield "half.webp", lossy[: len(lossy) // 2], REFUSED
    avif = by_pillow(SMOOTH, "AVIF")
    yield "plain.avif", avif, bare(avif)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned.avif", by_pillow(SMOOTH, "AVIF", exif=exif), np.rot90(bare(avif), -1)
    moving = by_pillow(SMOOTH, "AVIF", **frames)
    yield "moving.avif", moving, bare(moving)
    yield "half.avif", avif[: len(avif) // 2], REFUSED
    yield "moving.png", by_pillow(RGB, "PNG", **frames), RGB


def gifs():
    index = RNG.integers(0, 16, (HEIGHT, WIDTH), np.uint8)
    image = Image.fromarray(index)
    image.putpalette(PALETTE[:16].tobytes())
    still = by_pillow(image, "GIF")
    yield "still.gif", still, PALETTE[index]
    yield "interlaced.gif", by_pillow(image, "GIF", interlace=1), PALETTE[index]
    yield "transparent.gif", by_pillow(image, "GIF", transparency=3), over(PALETTE[index], 255 * (index != 3))
    yield (
        "moving.gif",
        by_pillow(image, "GIF", save_all=True, append_images=[Image.new("P", image.size)]),
        PALETTE[index],
    )
    yield "half.gif", still[: len(still) // 2], REFUSED


def heics():
    for name, pixels in {"plain.heic": SMOOTH, "named-jpg.jpg": SMOOTH, "deep.heic": None}.items():
        if pixels is None:
            heif = pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), np.ascontiguousarray(DEEP[..., :3]).tobytes())
        else:
            heif = pillow_heif.from_pillow(Image.fromarray(pixels))
        file = BytesIO()
        heif.save(file, quality=90)
        yield name, file.getvalue(), np.asarray(pillow_heif.open_heif(file).to_pillow())
    yield "half.heic", file.getvalue()[: len(file.getvalue()) // 2], REFUSED


def other_files():
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", png(RGB, 8, 2))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    contents = {"empty.jpg": b"", "page.jpg": b"<html></html>", "zip.png": archive.getvalue(), "drawing.svg": svg}
    contents |= {
        "zeros.png": bytes(1000),
        "notes.docx": b"PK\3\4",
        "heic-by-brand.heic": b"\0\0\0\x18ftypheic" + bytes(99),
    }
    yield from ((name, data, REFUSED) for name, data in contents.items())
    for kind in ("EPS", "PDF", "ICO", "TGA", "JPEG2000", "PPM"):
        yield f"a.{kind}", by_pillow(RGB, kind), REFUSED


FILES = [file for files in (pngs, profiles, tiffs, bmps, jpegs, modern, gifs, heics, other_files) for file in files()]


def test_there_are_at_least_sixty_files():
    assert len(FILES) >= 60


@pytest.mark.parametrize(("name", "data", "expected"), FILES, ids=[name for name, *_ in FILES])
def test_an_odd_file_is_decoded_exactly_or_refused_by_name(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    if expected is REFUSED:
        with pytest.raises(ImageError, match=f"{name} (is|has) .*: (remove|scale|save|pip)"):
            read_image(tmp_path / name)
        return
    image = read_image(tmp_path / name, BACKGROUND)
    assert image.mode == "RGB"
    assert image.size == np.shape(expected)[1::-1]
    assert np.abs(np.asarray(image) - np.rint(expected)).max() <= 1


def test_a_folder_gives_all_readable_images_and_one_warning_with_the_names_of_the_others(tmp_path, caplog):
    for name, data, _ in FILES:
        (tmp_path / name).write_bytes(data)
    photos = check_images(image_files(tmp_path), tmp_path)
    good, refused = ({name for name, _, expected in FILES if (expected is REFUSED) == bad} for bad in (False, True))
    assert {photo.path.name for photo in photos} == good
    (warning,) = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    assert warning.startswith(f"Left out {len(refused)} of {len(FILES)} files.")
    assert all(f"/{name} " in warning for name in refused)


@pytest.mark.parametrize(("name", "data", "expected"), FILES, ids=[name for name, *_ in FILES])
def test_a_damaged_file_raises_no_other_error_than_image_error(tmp_path, name, data, expected):
    rng = np.random.default_rng(len(data))
    for _ in range(6):
        damaged = bytearray(data[: rng.integers(0, len(data) + 1)] if rng.random() < 0.5 else data)
        for at in rng.integers(0, len(damaged), min(len(damaged), 4)):
            damaged[at] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        with suppress(ImageError):
            assert read_image(tmp_path / name).mode == "RGB"


def test_without_pillow_heif_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(ImageError, match=r"a\.heic is a HEIC file.*pip install 'hra-diffusion\[heic\]'"):
        read_image(tmp_path / "a.heic")
