"""Checked reading of safetensors files, never pickle, and reproducible writing."""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import torch
from safetensors.torch import load, save
from torch import Tensor

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.reading import check_regular, parse_object, read_bytes, reading
from hra_diffusion.text import shorten

_MAX_HEADER: Final = 16_000_000
"""Bytes of a safetensors file's header; that of an adapter has some 100 kB."""
_MAX_TENSORS: Final = 50_000
_MAX_NAME: Final = 1000
_DTYPES: Final = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        AdapterFileError: the file is missing or damaged, has a tensor twice, too many or a path as a name, or holds
            numbers that are complex, of less than 16 bits, or not finite in float32.
    """
    data = read_bytes(path)
    with reading(path):
        length = int.from_bytes(data[:8], "little")
        if length <= len(data):
            _check_header(path, length)
        if (count := data[8 : 8 + length].count(b'"dtype"')) > _MAX_TENSORS:
            raise AdapterFileError(f"{path} has {count:,} tensors, more than {_MAX_TENSORS:,}.")
        tensors = load(data)
        parse_object(data[8 : 8 + length], path)
        _check_names(path, tensors)
    check_finite(tensors, str(path))
    return tensors


def tensors_file(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order: the library's own order is random."""
    data = save(tensors, metadata=dict(metadata))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Raises:
        AdapterFileError: the file is missing or damaged.
    """
    check_regular(path)
    with reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        _check_header(path, length)
        metadata: dict[str, str] = parse_object(file.read(length), path).get("__metadata__") or {}
        return {str(key): str(value) for key, value in metadata.items()}


def check_finite(tensors: Mapping[str, Tensor], owner: str) -> None:
    """Check that all numbers are finite in float32.

    Args:
        tensors: tensors by name.
        owner: the file or adapter that they belong to, for the message.

    Raises:
        AdapterFileError: a number is not finite.
    """
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise AdapterFileError(f"{owner} holds numbers that are not finite, in {shorten(broken)}.")


def _check_header(path: Path, length: int) -> None:
    if length > _MAX_HEADER:
        raise AdapterFileError(f"{path} has a header of {length / 1e6:.0f} MB, more than {_MAX_HEADER / 1e6:.0f}.")


def _check_names(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if "\0" in name or "\\" in name or ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise AdapterFileError(f"{path} holds a tensor with a path for a name: {name[:80]!r}.")
        if len(name) > _MAX_NAME:
            raise AdapterFileError(f"{path} holds a tensor with a name of {len(name):,} characters: {name[:80]!r}….")
        if tensor.dtype not in _DTYPES:
            raise AdapterFileError(f"{path} holds numbers of a kind that is not used here, {tensor.dtype}: {name!r}.")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite in float32, the dtype in use; a finite sum proves it quickly, and may overflow."""
    used = tensor.float() if tensor.dtype == torch.float64 else tensor
    return math.isfinite(used.sum(dtype=torch.float64).item()) or bool(used.isfinite().all())
