"""The largest losses of layers, which import-lora and extract print."""

from collections.abc import Mapping

_LISTED_LAYERS = 5


def print_layer_losses(losses: Mapping[str, float]) -> None:
    """Print the first of the losses by layer, which are sorted from the largest."""
    for layer, lost in list(losses.items())[:_LISTED_LAYERS]:
        print(f"  {lost:6.1%}  {layer}")
