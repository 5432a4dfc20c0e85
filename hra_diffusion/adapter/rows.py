"""Mixed batches: another adapter for each row of a batch."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hra_diffusion.adapter.mixture import Blend
from hra_diffusion.errors import ConfigError

BASE = "__base__"
"""PEFT's name for the base model's rows."""

Rows = Sequence[Blend]
"""An adapter with its strength for each example of a batch; an empty blend for the base model."""


def call_by_adapter(rows: Rows, x: Tensor, call: Callable[[Tensor, Blend], Tensor]) -> Tensor:
    """Call a function on the rows of each adapter, and return its results in the order of the rows.

    Args:
        rows: the adapters of the examples.
        x: (rows, …); with several rows an example, as in beam search, an example's rows are neighbors.
        call: maps an adapter's rows, and the adapter, to (rows, …).

    Raises:
        ConfigError: the rows are no multiple of the examples.
    """
    if len(x) % len(rows):
        raise ConfigError(
            f"adapter_names has {len(rows)} names, and a layer got {len(x)} rows: give one name for each example."
        )
    groups: defaultdict[Blend, list[int]] = defaultdict(list)
    repeats = len(x) // len(rows)
    for index in range(len(x)):
        groups[rows[index // repeats]].append(index)
    if len(groups) == 1:
        return call(x, rows[0])
    indices = [torch.tensor(group, device=x.device) for group in groups.values()]
    results = [call(x[index], blend) for blend, index in zip(groups, indices, strict=True)]
    return torch.cat(results)[torch.cat(indices).argsort()]
