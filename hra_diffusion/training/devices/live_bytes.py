"""The bytes of live tensors and the launched operations of a computation, on tensors with or without data."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter

_WITHOUT_LAUNCH = ("empty", "new_empty", "detach", "alias", "_reshape_alias", "_unsafe_view", "promote_types")
"""Operations of torch's namespace aten that compute nothing, besides views."""

_LAUNCHES_OF_KERNELS = {"reflect_rows": 1, "reflect_rows_backward": 2}
"""Launches of the fused kernels' operators: see `hra_diffusion.householder.triton_launches`."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors and the operations within a ``with`` block.

    Attributes:
        peak: the largest number of bytes of live tensors so far: those added, and those that operations returned.
        launches: number of operations, without views and allocations; on a GPU each is one launch of a kernel or more.
            Fused kernels of reflections count as their launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.launches = 0
        self._live = 0
        self._storages: dict[int, Any] = {}

    def include(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors, such as a model's weights, and return the bytes of all live tensors."""
        for tensor in tensors:
            for storage in _storages(tensor):
                self._add(storage)
        return self._live

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Leave tensors out of the count, such as weights in main memory."""
        for tensor in tensors:
            self._storages |= {id(storage): weakref.ref(storage) for storage in _storages(tensor)}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count its results."""
        result = func(*args, **(kwargs or {}))
        self.launches += _launches(func)
        self.include(leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages and self._storages[key]() is storage:
            return

        def remove(_: Any) -> None:
            self._live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, remove)
        self._live += size
        self.peak = max(self.peak, self._live)


def _launches(func: Any) -> int:
    name = func.overloadpacket.__name__
    if func.namespace == "hra_diffusion":
        return _LAUNCHES_OF_KERNELS[name]
    return func.namespace == "aten" and not func.is_view and not name.startswith(_WITHOUT_LAUNCH)


def _storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of a tensor; a quantized one has several."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _storages(getattr(tensor, name))
    else:
        yield tensor.untyped_storage()
