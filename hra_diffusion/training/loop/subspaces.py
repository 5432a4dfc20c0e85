"""Training within reserved subspaces: --slot and --orthogonal_to.

The parameters stay the columns u ∈ ℝᵈ of each layer, so that everything else about a run is as usual. Their gradients
are projected onto the subspace before each step of the optimizer, and the columns after it. An average of columns
within a subspace is in it, too. The projection of a step is linear, and costs 4 d k r operations a layer for a slot of
k dimensions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.chains import read_chains, read_slot
from hra_diffusion.formats.peft import TEXT_PREFIX
from hra_diffusion.householder.subspaces import Slot, Subspace
from hra_diffusion.model import HRAModel
from hra_diffusion.text import shorten
from hra_diffusion.training.config import AdapterConfig
from hra_diffusion.training.loop.optimizers import retract

_LEAST = 2
"""Dimensions that a rotation needs."""
_OUTSIDE = 1e-4
"""Share of a column outside of its subspace above which an adapter to start from is not in it."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """The subspaces of a run."""

    slot: Slot | None
    others: Mapping[str, Tensor]
    """Columns (d, r) of all adapters to be orthogonal to, side by side, by "component.module"."""
    owners: Mapping[str, str]
    """The adapter that each layer's width was read from."""


def read_reservation(adapter: AdapterConfig) -> Reservation | None:
    """Read the settings --slot and --orthogonal_to with the named adapters; None without either.

    Raises:
        ConfigError: the slot is no i/n, or overlaps the slot of a named adapter.
        AdapterFileError: an adapter is missing or damaged, or two are for layers of different widths.
    """
    if adapter.slot is None and adapter.orthogonal_to is None:
        return None
    slot = Slot.parse(adapter.slot) if adapter.slot else None
    others: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    for source in adapter.orthogonal_to or ():
        recorded = read_slot(source)
        if slot and recorded and slot.overlaps(Slot.parse(recorded)):
            raise ConfigError(f"--slot {slot} overlaps the slot {recorded} of {source}: choose one that is free.")
        for layer, columns in read_chains(source).items():
            if layer in others and len(others[layer]) != len(columns):
                raise AdapterFileError(
                    f"--orthogonal_to names adapters of different base models: {layer} has {len(others[layer])} inputs "
                    f"in {owners[layer]} and {len(columns)} in {source}."
                )
            wide = columns.double()
            others[layer] = torch.cat([others[layer], wide], dim=1) if layer in others else wide
            owners.setdefault(layer, source)
    return Reservation(slot=slot, others=others, owners=owners)


def subspaces_of(reservation: Reservation, components: Mapping[str, HRAModel]) -> dict[nn.Parameter, Subspace]:
    """Return the subspace of each trained matrix of columns (d, r).

    Raises:
        ConfigError: a layer has fewer than two dimensions left; or no layer is shared with the adapters to be
            orthogonal to.
        AdapterFileError: these adapters are for layers of another width.
    """
    subspaces: dict[nn.Parameter, Subspace] = {}
    shared: set[str] = set()
    for component, model in components.items():
        for module, layer in model.adapted_layers().items():
            name = f"{component}.{module.removeprefix(TEXT_PREFIX)}"
            others, d = reservation.others.get(name), layer.unfolded_size
            if others is not None and len(others) != d:
                raise AdapterFileError(
                    f"--orthogonal_to {reservation.owners[name]} is for another base model: its layer {name} has "
                    f"{len(others)} inputs instead of {d}."
                )
            shared |= {name} if others is not None else set()
            subspace = Subspace.make(d, reservation.slot, others)
            if subspace.size(d) < _LEAST:
                raise ConfigError(
                    f"{_flags(reservation)} leaves {max(subspace.size(d), 0)} of {d} dimensions in the layer {name}, "
                    "and a rotation needs two: use fewer slots, or name fewer adapters."
                )
            if reservation.slot or others is not None:
                for columns in layer.hra_u.values():
                    if columns.requires_grad:
                        subspaces[columns] = subspace
    if reservation.others and not shared:
        raise ConfigError(
            f"--orthogonal_to names adapters of other layers than this run adapts, such as "
            f"{shorten(reservation.others, 1)}: leave it out, or train their --target_modules."
        )
    return subspaces


def check_start(subspaces: Mapping[nn.Parameter, Subspace], source: str | None) -> None:
    """Check that an adapter to start from is within the subspaces of the run.

    Raises:
        ConfigError: it is not.
    """
    for columns, subspace in subspaces.items() if source else ():
        wide = columns.detach().cpu()
        if (wide - subspace.project(wide)).norm() > _OUTSIDE * wide.norm():
            raise ConfigError(
                f"--init_adapter {source} is outside of the subspace of --slot or --orthogonal_to, which would change "
                "it: leave one out."
            )


def train_within(optimizer: torch.optim.Optimizer, subspaces: Mapping[nn.Parameter, Subspace]) -> None:
    """Keep columns within their subspaces: now, and in all steps of an optimizer.

    Args:
        optimizer: its columns are retracted already.
        subspaces: by matrix of columns (d, r).
    """
    groups: defaultdict[Any, list[nn.Parameter]] = defaultdict(list)
    for columns, subspace in subspaces.items():
        excluded = None if subspace.excluded is None else subspace.excluded.shape
        groups[columns.shape, columns.dtype, excluded].append(columns)
    stacks = [_Stack(group, [subspaces[columns] for columns in group]) for group in groups.values()]

    def project_gradients(*_: Any) -> None:
        for stack in stacks:
            stack.project([columns.grad for columns in stack.columns])

    def project_columns(*_: Any) -> None:
        for stack in stacks:
            base = [optimizer.state.get(columns, {}).get("z") for columns in stack.columns]  # of schedule-free ones
            retract([group for values in (stack.columns, base) if (group := stack.project(values))])

    project_columns()
    optimizer.register_step_pre_hook(project_gradients)
    optimizer.register_step_post_hook(project_columns)


class _Stack:
    """Matrices of columns of one shape, with the subspace of each."""

    def __init__(self, columns: Sequence[nn.Parameter], subspaces: Sequence[Subspace]) -> None:
        excluded = [subspace.excluded for subspace in subspaces if subspace.excluded is not None]
        self.columns = columns
        self._subspace = Subspace(subspaces[0].slot, torch.stack(excluded) if excluded else None)
        self._device = torch.device("cpu")

    @torch.no_grad()
    def project(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """Project a tensor (d, r) for each matrix of columns in place, and return the existing ones."""
        present = [tensor for tensor in tensors if tensor is not None]
        if present:
            if present[0].device != self._device:  # accelerate moves the model after the optimizer is built
                self._device = present[0].device
                self._subspace = self._subspace.to(self._device)
            zero = torch.zeros_like(present[0])
            with full_float32():
                projected = self._subspace.project(torch.stack([zero if t is None else t for t in tensors])).unbind()
            pairs = zip(tensors, projected, strict=True)
            torch._foreach_copy_(present, [new for old, new in pairs if old is not None])
        return present


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in full precision within a `with` block: with TF32 columns would leave a subspace."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _flags(reservation: Reservation) -> str:
    given = {"--slot": reservation.slot is not None, "--orthogonal_to": bool(reservation.others)}
    return " with ".join(flag for flag, is_given in given.items() if is_given)
