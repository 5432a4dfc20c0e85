"""What a judge can tell: a file beside its weights lists the labels of each attribute with the captions for them.

    judge.json
    {"attributes": {"object": {"cat": "a cat", …}, "background": {"beach": "on the beach", …}, …},
     "contexts":   {"beach": "on the beach", …},      labels of backgrounds that subjects are asked to appear on
     "unrelated":  ["a 3d render of a bus …", …]}      prompts that an adapter should leave alone

A label is the one whose caption is nearest to the image: what classification heads would answer, by prompts.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hra_diffusion.errors import ModelError
from hra_diffusion.formats.files import read_json
from hra_diffusion.metrics.bootstrap import FloatArray
from hra_diffusion.metrics.encoders import Clip

FILE = "judge.json"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The file's content."""

    attributes: dict[str, dict[str, str]]
    contexts: dict[str, str]
    unrelated: list[str]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_vocabulary(folder: str | Path) -> Vocabulary | None:
    """Read the vocabulary of a judge; None where there is none, as with CLIP from the hub.

    Raises:
        HRAError: the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        return Vocabulary(**read_json(path))
    except TypeError as error:
        raise ModelError(f"{path} must hold attributes, contexts and unrelated, nothing else: {error}.") from error


def classify(clip: Clip, images: FloatArray, captions: dict[str, str]) -> list[str]:
    """The label of each image.

    Args:
        clip: the judge.
        images: what it made of the images, shape (n, d).
        captions: by label.
    """
    nearest = (images @ clip.texts(list(captions.values())).T).argmax(axis=1)
    labels = list(captions)
    return [labels[index] for index in nearest]
