"""Adapters on the Hugging Face hub."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.resources import relative_to
from hra_diffusion.text import nearest


def local_folder(source: str | Path, subfolder: str | None, files: Iterable[str], **hub: Any) -> Path:
    """Return an adapter's folder on this machine: a local one, or the hub's, downloaded into the cache.

    Args:
        source: a folder, or the id of a repository on the hub.
        subfolder: the adapter's folder within it.
        files: names or patterns of the files to download.
        hub: arguments of `huggingface_hub.snapshot_download`: revision, token, cache_dir, …

    Raises:
        AdapterFileError: the source is a repository id, but the hub has no such repository or cannot be reached.
        TypeError: the hub has no argument of some name.
    """
    check_arguments(local_folder, hub)
    folder = Path(source) / (subfolder or "")
    if folder.exists() or not isinstance(source, str) or source.count("/") != 1:
        return folder
    patterns = [f"{subfolder}/{name}" if subfolder else name for name in files]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **hub)) / (subfolder or "")
    except (OSError, ValueError) as error:
        raise AdapterFileError(
            f"{source!r} is no folder here{relative_to(source)}, and the hub cannot be asked for it: {error}"
        ) from error


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str = "Upload adapter",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Publish a folder on the hub, and return the commit's address.

    Args:
        folder: the folder.
        repo_id: the repository, created if need be.
        commit_message: the first line of the commit.
        private: whether a new repository is private.
        token: the user's token; by default the stored one.
        revision: the branch.
        create_pr: open a pull request instead.

    Raises:
        OutputError: the hub refuses it.
    """
    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit: Any = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # the HTTP library, and so the error, depends on huggingface_hub's version
        raise OutputError(f"The folder {folder} cannot be published as {repo_id!r}: {error}") from error
    return commit.commit_url


def check_arguments(
    function: Callable[..., object], given: Mapping[str, object], target: Callable[..., object] = snapshot_download
) -> None:
    """Refuse keyword arguments that a function passes on, unless the target takes them.

    Args:
        function: the function that collects them, whose own names are known, too.
        given: the collected arguments.
        target: the function that gets them.

    Raises:
        TypeError: an argument is unknown; the message has the nearest name of both functions.
    """
    known = _parameter_names(target)
    for name in given:
        if name not in known:
            raise TypeError(f"There is no argument named {name!r}{nearest(name, known | _parameter_names(function))}")


def _parameter_names(function: Callable[..., object]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
