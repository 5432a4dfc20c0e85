"""Models of annotators, loaded once from a folder or the hub.

Segmentation and depth models come from transformers, safetensors only; landmarkers from mediapipe, the extra
``mediapipe``.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from PIL import Image

from hra_diffusion.errors import ConfigError, ModelError


@lru_cache(maxsize=2)
def segmenter(name: str) -> Callable[[Image.Image], npt.NDArray[np.uint8]]:
    """Load a segmentation model, a map from an RGB image to the labels of its pixels, modulo 256.

    Raises:
        ModelError: the model cannot be loaded.
    """
    model, processor = _load(name, "AutoModelForSemanticSegmentation")

    @torch.inference_mode()
    def segment(image: Image.Image) -> npt.NDArray[np.uint8]:
        outputs = model(**processor(images=image, return_tensors="pt").to(model.device))
        (labels,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
        return (labels % 256).to(torch.uint8).cpu().numpy()

    return segment


@lru_cache(maxsize=2)
def depth_estimator(name: str) -> Callable[[Image.Image], npt.NDArray[np.float32]]:
    """Load a depth model, a map from an RGB image to the nearness of its pixels.

    Raises:
        ModelError: the model cannot be loaded.
    """
    model, processor = _load(name, "AutoModelForDepthEstimation")

    @torch.inference_mode()
    def estimate(image: Image.Image) -> npt.NDArray[np.float32]:
        predicted = model(**processor(images=image, return_tensors="pt").to(model.device)).predicted_depth.cpu()
        size = (image.height, image.width)
        return torch.nn.functional.interpolate(predicted[:, None].float(), size, mode="bicubic")[0, 0].numpy()

    return estimate


class Landmarker:
    """A detector of the points of one face or body.

    Attributes:
        connections: pairs of points to join by a line.
    """

    def __init__(self, mediapipe: Any, detector: Any, result: str, connections: Sequence[tuple[int, int]]) -> None:
        self._mediapipe, self._detector, self._result = mediapipe, detector, result
        self.connections = connections

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32] | None:
        """Return the points (n, 2) in pixels; None without a face or body."""
        image = self._mediapipe.Image(self._mediapipe.ImageFormat.SRGB, np.ascontiguousarray(image))
        detected = getattr(self._detector.detect(image), self._result)
        if not detected:
            return None
        return np.array([(point.x * image.width, point.y * image.height) for point in detected[0]], np.float32)


# By annotator: mediapipe's class, the field of its results, and the class and field of its connections.
_LANDMARKERS = {
    "face": ("FaceLandmarker", "face_landmarks", "FaceLandmarksConnections", "FACE_LANDMARKS_CONTOURS"),
    "pose": ("PoseLandmarker", "pose_landmarks", "PoseLandmarksConnections", "POSE_LANDMARKS"),
}


@lru_cache(maxsize=2)
def landmarker(kind: str, path: str) -> Landmarker:
    """Load mediapipe's landmarker for a face or a pose from its file.

    Raises:
        ConfigError: mediapipe is not installed.
        ModelError: the file is missing, or not such a model.
    """
    if not path or not Path(path).is_file():
        raise ModelError(
            f"The annotator {kind!r} needs mediapipe's model, and there is no file {path or '(none was named)'}: "
            f"download {kind}_landmarker.task (see mediapipe's guide) and name it with --annotator_model."
        )
    try:
        mediapipe: Any = importlib.import_module("mediapipe")
        vision: Any = importlib.import_module("mediapipe.tasks.python.vision")
        tasks: Any = importlib.import_module("mediapipe.tasks.python")
    except ImportError as error:
        raise ConfigError(
            f"The annotator {kind!r} needs mediapipe ({error}): pip install 'hra-diffusion[mediapipe]'."
        ) from error
    class_name, result, lines_class, lines_field = _LANDMARKERS[kind]
    detector_class = getattr(vision, class_name)
    options = getattr(vision, f"{class_name}Options")(base_options=tasks.BaseOptions(model_asset_path=path))
    try:
        detector = detector_class.create_from_options(options)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path} is no {kind} landmarker of mediapipe: {error}") from error
    lines = getattr(getattr(vision, lines_class), lines_field)
    return Landmarker(mediapipe, detector, result, [(line.start, line.end) for line in lines])


def _load(name: str, kind: str) -> tuple[Any, Any]:
    import transformers  # slow to import; most annotators do not need it

    try:
        model = getattr(transformers, kind).from_pretrained(name, use_safetensors=True).eval()
        return model.to(PartialState().device), transformers.AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ModelError(
            f"{name!r} cannot be loaded as an annotator's model ({reason}): name a folder with a model for "
            f"transformers' {kind}, or with a network a model of the hub."
        ) from error
