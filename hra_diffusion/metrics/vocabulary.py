"""The vocabulary of a judge: a file beside its weights with the labels of each attribute and their captions.

    judge.json
    {"attributes": {"object": {"cat": "a cat", …}, "background": {"beach": "on the beach", …}, …},
     "contexts":   {"beach": "on the beach", …},      backgrounds for the subject, by label
     "unrelated":  ["a 3d render of a bus …", …]}      prompts without the subject and its class

Classification is zero-shot, as with CLIP: the label of an image is the one with the nearest caption.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hra_diffusion.errors import ModelError
from hra_diffusion.formats.reading import read_json
from hra_diffusion.metrics.bootstrap import FloatArray

if TYPE_CHECKING:
    from hra_diffusion.metrics.encoders import Clip  # imports transformers

FILE = "judge.json"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The content of judge.json."""

    attributes: dict[str, dict[str, str]]
    contexts: dict[str, str]
    unrelated: list[str]

    def to_json(self) -> str:
        """Return the text of judge.json."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_vocabulary(folder: str | Path) -> Vocabulary | None:
    """Read the vocabulary of a judge; None without one, as for CLIP from the hub.

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


def classify(clip: "Clip", images: FloatArray, captions: dict[str, str]) -> list[str]:
    """Return the label of each image.

    Args:
        clip: the judge.
        images: the judge's vectors of the images, (n, d).
        captions: captions by label.
    """
    nearest = (images @ clip.encode_texts(list(captions.values())).T).argmax(axis=1)
    labels = list(captions)
    return [labels[index] for index in nearest]
