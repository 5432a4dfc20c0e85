"""The names of a model's weight files, which say why the model cannot be loaded."""

from collections.abc import Iterable
from pathlib import Path, PurePath

from huggingface_hub import list_repo_files, snapshot_download

from hra_diffusion.text import shorten

_KINDS = (".safetensors", ".bin")


def explain_weights(name: str, revision: str | None = None) -> str | None:
    """Return a sentence on weight files that are pickled only or of a variant only, else None.

    Args:
        name: a folder of a model or component, or the name of one on the hub or in the hub's cache.
        revision: branch, tag or commit on the hub.
    """
    files = [file for file in _files(name, revision) if file.suffix in _KINDS and len(file.parts) < 3]
    return _pickled_only(files) or _variant_only(files)


def _files(name: str, revision: str | None) -> Iterable[PurePath]:
    """List the files of a model, relative to its folder; none if it cannot be found."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            return [PurePath(file) for file in list_repo_files(name, revision=revision)]
        except Exception:  # the HTTP library's, or of a name that the hub does not allow
            try:
                folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
            except Exception:
                return []
    return [path.relative_to(folder) for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern))]


def _pickled_only(files: list[PurePath]) -> str | None:
    readable = {file.parent for file in files if file.suffix == ".safetensors"}
    folders = dict.fromkeys(file.parent for file in files)
    if len(folders) > 1:
        folders.pop(PurePath(), None)  # other files beside the components
    pickled = [str(folder) for folder in folders if folder not in readable]
    if not pickled:
        return None
    components = "" if pickled == ["."] else f" of its {shorten(pickled)}"
    return (
        f"the weights{components} are in .bin files alone, which are pickled: reading them can run code of their "
        "author, so they are never read. Choose a model with .safetensors files, or convert one that you trust: load "
        "it in diffusers with use_safetensors=False, and write it with save_pretrained(folder)."
    )


def _variant_only(files: list[PurePath]) -> str | None:
    names = {file.name for file in files if file.suffix == ".safetensors"}
    variants = {name.split(".")[1].split("-")[0] for name in names if name.count(".") > 1}
    if not variants or len(names) > sum(name.count(".") > 1 for name in names):
        return None
    listed = " or ".join(f"--variant {variant}" for variant in sorted(variants))
    return f"its weight files are of a variant: give {listed}."
