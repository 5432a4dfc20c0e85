"""A labeled sheet of images."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_LABEL_CHARACTERS = 24


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """Arrange images in a grid on white, with labels above the columns and left of the rows.

    Args:
        rows: images of one size, as many in a row as ``column_labels``.
        row_labels: one a row; long ones are wrapped.
        column_labels: one a column, possibly of several lines.
    """
    width, height = rows[0][0].size
    font = ImageFont.load_default(size=max(11, width // 16))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels = ["\n".join(textwrap.wrap(label, _LABEL_CHARACTERS)) for label in row_labels]
    left = round(max(measure.multiline_textbbox((0, 0), label, font)[2] for label in labels)) + 2 * _GAP
    top = round(max(measure.multiline_textbbox((0, 0), header, font)[3] for header in column_labels)) + 2 * _GAP
    size = (left + len(column_labels) * (width + _GAP), top + len(rows) * (height + _GAP))
    sheet = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(sheet)
    for column, header in enumerate(column_labels):
        middle = left + column * (width + _GAP) + width / 2
        canvas.multiline_text((middle, top / 2), header, "black", font, anchor="mm", align="center")
    for row, (label, images) in enumerate(zip(labels, rows, strict=True)):
        y = top + row * (height + _GAP)
        canvas.multiline_text((_GAP, y + height / 2), label, "black", font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * (width + _GAP), y))
    return sheet
