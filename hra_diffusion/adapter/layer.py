"""An adapted layer: a frozen base layer behind a chain of reflections.

    y = base_layer(H x),   W' = W H

The base layer is only called: it may be quantized, offloaded, hooked or compiled. Its weight is read for merging alone.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.mixture import Blend, Mixture, blend_together
from hra_diffusion.adapter.wrapper import Wrapper
from hra_diffusion.errors import MergeError
from hra_diffusion.householder.compact_wy import CompactWY, factor, full_precision
from hra_diffusion.householder.gram_schmidt import orthonormal_columns
from hra_diffusion.householder.kernel import reflect

_COLUMNS, _ANCHOR = "hra_u_", "hra_anchor_"


class HRALayer(Wrapper):
    """What adapted layers share: named columns, which of them act and how, and merging.

    Columns are parameters of the layer itself, so that whatever moves a layer's parameters in and out moves them along,
    and they stay in float32 or wider whatever the model is cast to: in half precision H would not be orthogonal.

    Attributes:
        mixture: which adapters act, how strongly, and combined how.
        enabled: whether they act at all.
        merged: what the base layer's weight contains at present; nothing when empty.
        ready: the acting columns and their chain, when it was factored ahead for the current pass of the whole model.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.mixture: Mixture = ()
        self.enabled = True
        self.merged: Mixture = ()
        self.ready: tuple[Tensor, CompactWY] | None = None
        self._orthonormal: set[str] = set()
        self._blended: dict[Blend, tuple[object, Tensor]] = {}
        self._unmerged_weight: list[nn.Parameter] = []

    # Columns

    @property
    def hra_u(self) -> dict[str, nn.Parameter]:
        """The trainable columns (d, r) of each adapter here."""
        return self._named(_COLUMNS)

    @property
    def hra_anchor(self) -> dict[str, nn.Parameter]:
        """The frozen orthonormal columns (d, r) in front of anchored adapters."""
        return self._named(_ANCHOR)

    @torch.inference_mode(False)
    def put_adapter(
        self, name: str, columns: Tensor, *, anchor: Tensor | None = None, orthonormal: bool = False
    ) -> None:
        """Put an adapter here.

        Args:
            name: the adapter's.
            columns: (d, r); they are copied to the base layer's device, if both are on a real one.
            anchor: orthonormal columns (d, r) that stand frozen in front of them.
            orthonormal: apply Gram–Schmidt to the columns.
        """
        device = columns.device if self.base_device.type == "meta" or columns.is_meta else self.base_device
        dtype = torch.float64 if self._base_tensor.dtype == torch.float64 else torch.float32
        for prefix, tensor in ((_COLUMNS, columns), (_ANCHOR, anchor)):
            if tensor is not None:
                own = nn.Parameter(tensor.detach().to(device, dtype, copy=True), requires_grad=False)
                self.register_parameter(prefix + name, own)
        if orthonormal:
            self._orthonormal.add(name)

    @torch.no_grad()
    def overwrite_adapter(self, name: str, columns: Tensor) -> None:
        """Write columns (d, at most r) over an adapter's, in place; identities fill it up."""
        own = self.hra_u[name]
        own[:, : columns.shape[1]] = columns.to(own.device, own.dtype)
        own[:, columns.shape[1] :] = 0
        self._orthonormal.discard(name)

    def drop_adapter(self, name: str) -> None:
        """Remove an adapter, if it is here."""
        for prefix in (_COLUMNS, _ANCHOR):
            self._parameters.pop(prefix + name, None)
        self._orthonormal.discard(name)

    def has(self, name: str) -> bool:
        """Whether an adapter is here."""
        return _COLUMNS + name in self._parameters

    def own_columns(self, name: str) -> nn.Parameter:
        """The trainable columns (d, r) of an adapter that is here."""
        return getattr(self, _COLUMNS + name)

    def chain_columns(self, name: str) -> Tensor:
        """Columns (d, k) of one adapter's chain; for an anchored one, k = 2 r."""
        columns = self.own_columns(name)
        if not self.is_orthonormal(name):
            return columns
        own = orthonormal_columns(columns)
        anchor = self.hra_anchor.get(name)
        return own if anchor is None else torch.cat([anchor, own], dim=1)

    def is_orthonormal(self, name: str) -> bool:
        """Whether Gram–Schmidt is applied to an adapter's columns."""
        return name in self._orthonormal

    def columns(self, mixture: Mixture | None = None) -> Tensor | None:
        """Columns (d, Σk) of a mixture of adapters, or of the acting one; None when none of its adapters is here."""
        blends = self.blends(mixture)
        if not torch.compiler.is_compiling():  # There, what HRAModel blended ahead is taken as it is.
            blend_together((self, blend) for blend in self.stale(blends))
        parts = [self.chain_columns(blend[0][0]) if _is_plain(blend) else self._blended[blend][1] for blend in blends]
        return torch.cat(parts, dim=1) if len(parts) > 1 else next(iter(parts), None)

    def blends(self, mixture: Mixture | None = None) -> list[Blend]:
        """List the blends of a mixture, or of the acting one, without adapters that are not here or have strength 0."""
        mixture = self.mixture if mixture is None else mixture
        present = (tuple(part for part in blend if part[1] != 0 and self.has(part[0])) for blend in mixture)
        return [blend for blend in present if blend]

    def stale(self, blends: Sequence[Blend]) -> list[Blend]:
        """List the blends that are yet to be computed from the present columns; those of no more use are forgotten."""
        useful = {*blends, *self.blends()}
        self._blended = {blend: kept for blend, kept in self._blended.items() if blend in useful}
        needed = (blend for blend in blends if not _is_plain(blend))
        return [blend for blend in needed if self._blended.get(blend, (None,))[0] != self._state_of(blend)]

    def keep_blended(self, blend: Blend, columns: Tensor) -> None:
        """Keep a blend's columns, as constants."""
        self._blended[blend] = (self._state_of(blend), columns)

    def _state_of(self, blend: Blend) -> object:
        parameters = [p for name, _ in blend for p in (self.own_columns(name), self._parameters.get(_ANCHOR + name))]
        return [(p.data_ptr(), 0 if p.is_inference() else p._version, p.device) for p in parameters if p is not None]

    def _named(self, prefix: str) -> dict[str, nn.Parameter]:
        return {
            name.removeprefix(prefix): parameter
            for name, parameter in self._parameters.items()
            if parameter is not None and name.startswith(prefix)
        }

    @property
    def base_device(self) -> torch.device:
        """Where the base layer is."""
        return self._base_tensor.device

    @property
    def _base_tensor(self) -> Tensor:
        return next(chain(self.base_layer.parameters(), self.base_layer.buffers()), torch.empty(0))

    # Merging

    @property
    def unfolded_size(self) -> int:
        """Number of inputs that one output sees: d, the length of a column."""
        raise NotImplementedError

    def unfold_weight(self, weight: Tensor) -> Tensor:
        """View the base layer's weight as (out, d)."""
        raise NotImplementedError

    def fold_weight(self, unfolded: Tensor) -> Tensor:
        """Undo `unfold_weight`."""
        raise NotImplementedError

    @torch.inference_mode(False)
    @torch.no_grad()
    def merged_weight(self, mixture: Mixture) -> Tensor | None:
        """Multiply adapters into a copy of the base layer's own weight; None when none of them is here.

        Raises:
            MergeError: the weight is quantized.
        """
        columns = self.columns(mixture)
        if columns is None:
            return None
        weight = self.own_weight()
        with full_precision(weight.device):
            return self.fold_weight(factor(columns.to(weight.device)).rotate_weight(self.unfold_weight(weight)))

    def own_weight(self) -> Tensor:
        """Return the base layer's weight without anything merged into it.

        Raises:
            MergeError: it cannot be computed with.
        """
        weight = self._unmerged_weight[0] if self._unmerged_weight else self.base_layer.weight
        if isinstance(weight, Tensor) and weight.is_meta and not any(u.is_meta for u in self.hra_u.values()):
            raise MergeError("Cannot merge into weights that are offloaded: merge first, then offload the model.")
        if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise MergeError(
                f"Cannot merge into the weight of a {type(self.base_layer).__name__} ({type(weight).__name__}): it is "
                "quantized or sharded. Use the adapter unmerged, or merge it before quantizing or sharding the model."
            )
        if not self._unmerged_weight and self.base_layer._parameters.get("weight") is not weight:
            raise MergeError(
                f"Cannot merge into a {type(self.base_layer).__name__}, which holds its weight in another layer: take "
                "what adapts it (a LoRA) out first, or use both unmerged."
            )
        return weight

    def merge(self, weight: Tensor, mixture: Mixture) -> None:
        """Put a merged weight into the base layer, and keep the original parameter aside."""
        original: nn.Parameter = self.base_layer.weight
        if not self._unmerged_weight:
            self._unmerged_weight.append(original)
        self.base_layer.weight = nn.Parameter(weight, requires_grad=original.requires_grad)
        self.merged = mixture

    def unmerge(self) -> None:
        """Put the original parameter back: bit by bit what it was.

        Raises:
            MergeError: the layer's weight is offloaded; the original is kept.
        """
        if self._unmerged_weight:
            original, present = self._unmerged_weight[0], self.base_layer.weight
            if present.is_meta and not original.is_meta:
                raise MergeError("Cannot unmerge weights that are offloaded: stop offloading the model first.")
            original.data = original.data.to(present.device, present.dtype)  # The model may have moved meanwhile.
            self.base_layer.weight = original
            self._unmerged_weight.clear()
        self.merged = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HRALayer":
        def keep_precision(columns: Tensor) -> Tensor:
            moved = fn(columns)
            return columns.to(moved.device) if moved.dtype.itemsize < torch.float32.itemsize else moved

        if recurse:
            self.base_layer._apply(fn)
        return super()._apply(keep_precision, recurse=False)

    # Passing through

    @property
    def turns_input(self) -> bool:
        """Whether the chain acts on the layer's input itself."""
        raise NotImplementedError

    @property
    def expected_dtype(self) -> torch.dtype:
        """What the layer will probably compute in, whatever it is stored in."""
        own = getattr(self.base_layer, "compute_dtype", None)  # of bitsandbytes' layers
        if isinstance(own, torch.dtype):
            return own
        weight = getattr(self.base_layer, "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.dtype.itemsize > 1:
            return compute_dtype(weight)
        return compute_dtype(next(iter(self.hra_u.values())))

    def acting_columns(self) -> Tensor | None:
        """Columns that the forward pass has to apply now."""
        return self.columns() if self.enabled and not self.merged else None

    def reflected(self, x: Tensor, *, output_is_kept: bool = False) -> Tensor:
        """H x for each row of x (*, d), with what acts now; x itself when nothing does."""
        ready = None if torch.compiler.is_compiling() else self.ready  # one graph, also where it is computed again
        columns, factored = ready or (self.acting_columns(), None)
        if columns is None:
            return x
        x = x.to(compute_dtype(x))
        usable = factored if factored and factored.U.dtype == x.dtype else None
        return reflect(x, columns.to(x.device), usable, output_is_kept=output_is_kept)

    def extra_repr(self) -> str:
        """Name the adapters and their ranks."""
        return ", ".join(f"{name}: r={columns.shape[1]}" for name, columns in self.hra_u.items())


def _is_plain(blend: Blend) -> bool:
    """Whether a blend is one adapter at full strength."""
    return len(blend) == 1 and blend[0][1] == 1


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype a layer would compute in: autocasting's where it is on (it leaves float64 alone)."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
