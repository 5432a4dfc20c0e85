"""OpenCV, which controls need: the extra ``control``."""

from hra_diffusion.errors import MissingExtraError

try:
    import cv2
except ImportError as error:
    raise MissingExtraError(f"Controls need OpenCV ({error}): pip install 'hra-diffusion[control]'.") from error

__all__ = ["cv2"]
