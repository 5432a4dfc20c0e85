"""Nested dicts, lists and tuples of tensors, as plain JSON and a flat dict of tensors instead of pickle.

    {"state": {0: {"step": 3, "mean": Tensor}}}

becomes the tensor "state/0/mean" and

    {"dict": [["state", {"dict": [[0, {"dict": [["step", 3], ["mean", {"tensor": "state/0/mean"}]]}]]}]]}

so that numbers as keys stay numbers, tuples stay tuples, and the restored value is equal bit by bit. The state_dict of
every optimizer is such a value.
"""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from hra_diffusion.errors import AdapterFileError

_PLAIN = (str, int, float, bool, type(None))


def flatten(value: object) -> tuple[Any, dict[str, Tensor]]:
    """Split a nested value into JSON and tensors.

    Args:
        value: dicts with plain keys, lists, tuples, tensors, strings, numbers, booleans and None.

    Returns:
        The JSON value, and the tensors by name, copied to the CPU.

    Raises:
        TypeError: it holds a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    return _describe(value, (), tensors), tensors


def restore(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Rebuild a nested value: the inverse of :func:`flatten`.

    Raises:
        AdapterFileError: JSON and tensors do not match.
    """
    try:
        return _restore(described, tensors)
    except RecursionError as error:
        raise AdapterFileError("A saved state is damaged: it is nested too deeply.") from error


def _restore(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(described, list):
        return [_restore(item, tensors) for item in cast("list[Any]", described)]
    if not isinstance(described, dict):
        return described
    try:
        ((kind, content),) = cast("dict[str, Any]", described).items()
        if kind == "tensor":
            return tensors[content]
        items = [_restore(item, tensors) for item in content]
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
