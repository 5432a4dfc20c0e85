"""Any nesting of dicts, lists and tuples with tensors in it, as plain JSON and a flat dict of tensors: never pickle.

    {"state": {0: {"step": 3, "mean": Tensor}}}

becomes the tensor "state/0/mean" and

    {"dict": [["state", {"dict": [[0, {"dict": [["step", 3], ["mean", {"tensor": "state/0/mean"}]]}]]}]]}

so that keys that are numbers stay numbers, tuples stay tuples, and what comes back is equal to the bit. The state_dict
of every optimizer is such a nesting.
"""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from hra_diffusion.errors import AdapterFileError

_PLAIN = (str, int, float, bool, type(None))


def flatten(value: object) -> tuple[Any, dict[str, Tensor]]:
    """Take a nesting apart.

    Args:
        value: dicts with plain keys, lists, tuples, tensors, strings, numbers, booleans and None.

    Returns:
        What JSON can hold, and the tensors by name, copied to the CPU.

    Raises:
        TypeError: there is something else in it.
    """
    tensors: dict[str, Tensor] = {}
    return _describe(value, (), tensors), tensors


def restore(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put a nesting together again: the inverse of :func:`flatten`.

    Raises:
        AdapterFileError: the two do not belong together.
    """
    if isinstance(described, list):
        return [restore(item, tensors) for item in cast("list[Any]", described)]
    if not isinstance(described, dict):
        return described
    try:
        ((kind, content),) = cast("dict[str, Any]", described).items()
        if kind == "tensor":
            return tensors[content]
        items = [restore(item, tensors) for item in content]
        return {"dict": dict, "tuple": tuple}[kind](items)
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterFileError(f"A saved state is damaged: {str(described)[:80]!r} cannot be understood.") from error


def _describe(value: object, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = "/".join(path)
        while name in tensors:
            name += "'"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value).items()
        return {"dict": [[_plain(key, path), _describe(item, (*path, str(key)), tensors)] for key, item in entries]}
    if isinstance(value, list | tuple):
        items = cast("list[object]", value)
        described = [_describe(item, (*path, str(index)), tensors) for index, item in enumerate(items)]
        return described if isinstance(value, list) else {"tuple": described}
    return _plain(value, path)


def _plain(value: object, path: tuple[str, ...]) -> object:
    if not isinstance(value, _PLAIN):
        raise TypeError(f"{'/'.join(path)} holds a {type(value).__name__}, which cannot be saved without pickle.")
    return value
