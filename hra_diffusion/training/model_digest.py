"""A short digest of a base model, to recognize its class images and checkpoints."""

import hashlib

from hra_diffusion.pipelines.components import models
from hra_diffusion.pipelines.protocol import Pipeline


def model_digest(pipe: Pipeline) -> str:
    """Digest a pipeline's scheduler config and the last weight of each component, without adapters.

    One weight is enough, since training a model changes all of its weights. Neither the folder's name nor the
    scheduler config's private entries count.
    """
    settings = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    digest = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=8)
    for _, component in sorted(models(pipe).items()):
        *_, weight = (weight for name, weight in component.named_parameters() if "hra_" not in name)
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
