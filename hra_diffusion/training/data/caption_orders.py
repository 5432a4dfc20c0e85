"""Shuffled captions: the tags of a caption in other orders, so that no tag depends on its position.

    "sks dog, on grass, side view, sunny", of which the first tag is kept:
    "sks dog, sunny, on grass, side view"
    …

A caption has a few orders, which are encoded once like the caption itself; a step samples one of them. kohya's scripts
shuffle a caption anew in each step instead, and so cannot keep its embedding.
"""

import math

from hra_diffusion.training.config import DataConfig
from hra_diffusion.training.rng import endless_shuffle

MAX_ORDERS = 10
"""Orders of a caption, the written one included: each needs memory for its embedding."""


def caption_orders(caption: str, data: DataConfig, seed: int) -> list[str]:
    """Return a caption in several orders of its tags, the written one first; alone without --shuffle_caption.

    Args:
        caption: the caption, with tags between separators.
        data: the separator, and the number of first tags that stay.
        seed: seed of the orders; they depend on it and the caption alone.
    """
    if not data.shuffle_caption:
        return [caption]
    tags = [tag.strip() for tag in caption.split(data.caption_separator)]
    kept, others = tags[: data.keep_tokens], tags[data.keep_tokens :]
    if len(others) < 2:
        return [caption]
    glue = f"{data.caption_separator} " if data.caption_separator.strip() else data.caption_separator
    wanted = min(MAX_ORDERS, math.factorial(min(len(others), MAX_ORDERS)))
    orders: dict[str, None] = {caption: None}
    for number in range(MAX_ORDERS * MAX_ORDERS):  # repeated tags have fewer orders
        if len(orders) == wanted:
            break
        order = endless_shuffle(seed, f"order of tags of {caption}", len(others), number * len(others), len(others))
        shuffled = [*kept, *(others[index] for index in order)]
        if shuffled != tags:
            orders[glue.join(shuffled)] = None
    return list(orders)
