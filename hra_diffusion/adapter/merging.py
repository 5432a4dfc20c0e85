"""Merge adapters into the weights of layers."""

from collections.abc import Mapping

from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.mixture import ModelMixture, mixture_in
from hra_diffusion.errors import MergeError
from hra_diffusion.text import shorten


def merge_layers(
    layers: Mapping[str, HRALayer], mixture: ModelMixture, *, safe_merge: bool = False, progressbar: bool = False
) -> None:
    """Merge a mixture into every layer that has one of its adapters, and unmerge the other layers.

    Args:
        layers: adapted layers by name.
        mixture: the adapters with their strengths.
        safe_merge: check first that every merged weight W H is finite.
        progressbar: show a progress bar.

    Raises:
        MergeError: a weight is quantized, or (safe_merge) W H is not finite; nothing is changed.
    """
    steps = layers.items()
    if progressbar:
        from tqdm import tqdm

        steps = tqdm(steps, desc="Merging")
    mixtures = {name: mixture_in(mixture, name) for name in layers}
    weights = {name: weight for name, layer in steps if (weight := layer.merged_weight(mixtures[name])) is not None}
    if safe_merge and (broken := [name for name, weight in weights.items() if not weight.isfinite().all()]):
        names = ", ".join(dict.fromkeys(name for blend in mixture for name, _ in blend))
        raise MergeError(
            f"NaNs detected in the merged weights. The adapter {names} seems to be broken: numbers are not finite, in "
            f"{shorten(broken)}."
        )
    for name, layer in layers.items():
        if name in weights:
            layer.merge(weights[name], mixtures[name])
        else:
            layer.unmerge()
