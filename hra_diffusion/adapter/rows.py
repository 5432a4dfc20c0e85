"""Mixed batches: another mixture of adapters for each example of a batch.

A layer reads its input in rows: y = W (x − U s). Rows without an adapter stay as they are, so that they give the base
model's output to the bit.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from hra_diffusion.adapter.mixture import Mixture
from hra_diffusion.adapter.row_stacks import Stack, stack_factors
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.factoring import Factors
from hra_diffusion.householder.recording import is_transformed

BASE = "__base__"
"""PEFT's name for the base model's rows."""

_MOST_REPEATS = 4
"""Predictions of an image in one batch: guidance has two, and its variants three or four."""

Call = Callable[[Tensor, Mixture], Tensor]
"""Maps rows and the mixture of their adapters to rows."""


FactorsOf = Callable[[Mixture, Tensor], Factors | None]
"""Maps a mixture, and rows, to the chain's factors for such rows; None when its adapters are absent."""


class Rows:
    """The adapters of the examples in a batch.

    Args:
        mixtures: the mixture of each example; an empty one for the base model.
        repeated: whether a batch with more rows than examples repeats the whole series of examples, as the halves of
            classifier-free guidance do. Otherwise the rows of an example are neighbors, as in beam search.
    """

    def __init__(self, mixtures: Sequence[Mixture], *, repeated: bool = False) -> None:
        self.mixtures = tuple(mixtures)
        self.repeated = repeated
        self._groups: dict[tuple[int, torch.device], dict[Mixture, Tensor]] = {}
        self._stacks: dict[Hashable, Stack | None] = {}

    def groups(self, count: int, device: torch.device) -> dict[Mixture, Tensor]:
        """Return the indices of the rows of each mixture, in a batch of `count` rows.

        Raises:
            ConfigError: the rows are no multiple of the examples.
        """
        if torch.compiler.is_compiling():
            return self._find_groups(count, device)
        if (count, device) not in self._groups:
            with torch.inference_mode(False):  # a gradient may need the indices
                self._groups[count, device] = self._find_groups(count, device)
        return self._groups[count, device]

    def _find_groups(self, count: int, device: torch.device) -> dict[Mixture, Tensor]:
        examples = len(self.mixtures)
        if count % examples:
            raise ConfigError(
                f"The batch has {examples} examples with an adapter name each (adapter_names, or a prompt), and a "
                f"layer got {count} rows: give one name for each example."
            )
        repeats = count // examples
        if self.repeated and repeats > _MOST_REPEATS:
            raise ConfigError(
                f"The batch has {examples} images with different adapters, and a layer got {count} rows, which are "
                "tokens or frames: generate the prompts one by one."
            )
        members: defaultdict[Mixture, list[int]] = defaultdict(list)
        for row in range(count):
            members[self.mixtures[row % examples if self.repeated else row // repeats]].append(row)
        return {mixture: torch.tensor(rows, device=device) for mixture, rows in members.items()}

    def replace(self, x: Tensor, call: Call, factors: FactorsOf | None = None) -> Tensor:
        """Return x (rows, …) with the rows of each mixture replaced by the function's results; the base's rows stay.

        Args:
            x: the rows.
            call: reflects rows.
            factors: the factors for such rows, if `call` reflects by them: all rows are then reflected at once.
        """
        groups = self.groups(len(x), x.device)
        if len(groups) == 1:
            (mixture,) = groups
            return call(x, mixture) if mixture else x
        together = (
            self._reflect_together(x, factors) if factors is not None and x.dim() == 3 and x.is_contiguous() else None
        )
        if together is not None:
            return together
        replaced = x.clone()
        for mixture, index in groups.items():
            if mixture:
                replaced.index_copy_(0, index, call(x[index], mixture))
        return replaced

    def _reflect_together(self, x: Tensor, factors: FactorsOf) -> Tensor | None:
        """Return H x with the chain of each row of x (rows, tokens, d); None where groups have to be reflected."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed():
            return None
        key = (factors, x.shape[0], x.dtype, x.device)
        if key not in self._stacks:
            groups = self.groups(len(x), x.device)
            chains = {mixture: factors(mixture, x) if mixture else None for mixture in groups}
            self._stacks[key] = stack_factors(chains, groups, x)
        stack = self._stacks[key]
        return x if stack is None else stack.reflect(x)

    def add_change(self, output: Tensor, x: Tensor, call: Callable[[Tensor, Mixture], Tensor | None]) -> Tensor:
        """Add the function's results for the rows of x (rows, …) to the same rows of a layer's output (rows, …).

        Args:
            output: the base layer's output.
            x: its input.
            call: returns None for an adapter that the layer does not have.
        """
        for mixture, index in self.groups(len(x), x.device).items():
            change = call(x[index], mixture) if mixture else None
            if change is not None:
                output = output.index_add(0, index, change.to(output.dtype))
        return output


def call_by_adapter(rows: Rows, x: Tensor, call: Call) -> Tensor:
    """Call a function on the rows of each mixture in x (rows, …); return its results in the order of the rows."""
    groups = rows.groups(len(x), x.device)
    if len(groups) == 1:
        return call(x, *groups)
    results = [call(x[index], mixture) for mixture, index in groups.items()]
    return torch.cat(results)[torch.cat(list(groups.values())).argsort()]
