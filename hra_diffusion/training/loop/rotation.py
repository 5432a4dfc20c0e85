"""Rotation angles of the adapted layers after each step, as means over components and groups of layers.

The groups are the stages of a component, such as down_blocks, mid_block and up_blocks of a UNet. Those of a component
with one stage are its attention and its feed-forward layers.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.householder.mean_angle import mean_angle, sine_squares
from hra_diffusion.model import HRAModel

_FEED_FORWARD = re.compile(r"(^|[._])(ff|mlp|feed_forward)([._]|$)")


class RotationAngles:
    """The mean rotation angles of components and their groups of layers.

    Attributes:
        names: component or component.group, in the order of the angles.
    """

    def __init__(self, components: Mapping[str, HRAModel]) -> None:
        """Group the adapted layers of components, by name; the layers have to be on their device."""
        self._shapes: dict[torch.Size, list[tuple[HRALayer, str]]] = {}
        names_by_shape: dict[torch.Size, list[list[str]]] = {}
        for component, model in components.items():
            (adapter,) = model.active_adapters
            layers = {name: layer for name, layer in model.adapted_layers().items() if adapter in layer.hra_u}
            groups = layer_groups(list(layers))
            for name, layer in layers.items():
                chain = layer.columns.chain(adapter)
                self._shapes.setdefault(chain.shape, []).append((layer, adapter))
                names = [component, *([f"{component}.{groups[name]}"] if groups[name] else [])]
                names_by_shape.setdefault(chain.shape, []).append(names)
        members = [(names, shape[1]) for shape, layers in names_by_shape.items() for names in layers]
        self.names = sorted({name for names, _ in members for name in names})
        counts = torch.tensor([[float(name in names) for names, _ in members] for name in self.names])
        planes = torch.tensor([columns / 2 for _, columns in members])
        self._means = counts / (counts @ planes).unsqueeze(-1) if members else counts

    @torch.no_grad()
    def degrees(self) -> Tensor:
        """Return the mean angle in degrees for each name; does not wait for the device."""
        sums = [
            sine_squares(torch.stack([layer.columns.chain(adapter) for layer, adapter in layers]))
            for layers in self._shapes.values()
        ]
        self._means = self._means.to(sums[0].device)
        return torch.rad2deg(mean_angle((self._means * torch.cat(sums).float()).sum(-1)))


def layer_groups(names: list[str]) -> dict[str, str]:
    """Return the group of each layer of a component by name, or "" for one group."""
    stages = {name: name.partition(".")[0] for name in names}
    if len(set(stages.values())) < 2:
        stages = {name: "feed_forward" if _FEED_FORWARD.search(name) else "attention" for name in names}
    return stages if len(set(stages.values())) > 1 else dict.fromkeys(names, "")
