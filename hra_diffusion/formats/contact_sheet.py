"""A labeled sheet of images."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 8
LABEL_CHARACTERS = 24


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """Arrange images in a grid on white, a label above each column and to the left of each row.

    Args:
        rows: images of one size, each row as long as ``column_labels``.
        row_labels: one a row; long ones are wrapped.
        column_labels: one a column; they may have several lines.
    """
    width, height = rows[0][0].size
    font = ImageFont.load_default(size=max(11, width // 16))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels = ["\n".join(textwrap.wrap(label, LABEL_CHARACTERS)) for label in row_labels]
    left = round(max(measure.multiline_textbbox((0, 0), label, font)[2] for label in labels)) + 2 * GAP
    top = round(max(measure.multiline_textbbox((0, 0), header, font)[3] for header in column_labels)) + 2 * GAP
    size = (left + len(column_labels) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, header in enumerate(column_labels):
        middle = left + column * (width + GAP) + width / 2
        draw.multiline_text((middle, top / 2), header, "black", font, anchor="mm", align="center")
    for row, (label, images) in enumerate(zip(labels, rows, strict=True)):
        y = top + row * (height + GAP)
        draw.multiline_text((GAP, y + height / 2), label, "black", font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * (width + GAP), y))
    return sheet
