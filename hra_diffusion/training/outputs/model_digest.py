"""Telling models apart by a few bytes: who draws class images, and whose run a checkpoint is of."""

import hashlib
from typing import Any

from hra_diffusion.pipelines.components import models


def model_digest(pipe: Any) -> str:
    """Digest a pipeline's scheduler and the last weight of each component: training a model changes all of its weights.

    Adapters do not count, and neither do the folder's name or how the scheduler's settings came about.
    """
    settings = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    digest = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=8)
    for _, component in sorted(models(pipe).items()):
        *_, weight = (weight for name, weight in component.named_parameters() if "hra_" not in name)
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
