"""Publishing an adapter on the Hugging Face hub: files, model card and images in one commit."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from hra_diffusion.errors import AdapterFileError, ImageError, OutputError
from hra_diffusion.formats.adapter_card import CARD
from hra_diffusion.formats.folders import (
    ENCODER,
    ENCODER_FILES,
    base_model,
    component_folders,
    encoder_beside,
    public_name,
    recorded_base,
    run_settings,
    tokens_beside,
)
from hra_diffusion.formats.model_card import ModelCard
from hra_diffusion.formats.peft import CONFIG_FILE, FILES, read_adapter
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.run_folder import METRICS, SHEET, TABLE, base_files, result_file
from hra_diffusion.formats.tensors import read_tensors
from hra_diffusion.formats.tokens import token_files


def push_hra_weights(
    folder: str | Path,
    repo_id: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload an HRA adapter",
    license: str | None = None,
    images: Mapping[str | Path, str] | None = None,
) -> str:
    """Publish an adapter on the hub with a model card, in one commit.

    The card has the base model, the instance prompt, tags, license, images, and the results of the run: its settings,
    before_after.png, and the numbers of ``hra-diffusion evaluate``. An existing card is left unchanged.

    Args:
        folder: the adapter's folder, or the output folder of its run.
        repo_id: "name" or "user/name"; it is created if need be.
        subfolder: the adapter's folder in the repository.
        revision: the branch; the main one by default.
        private: whether a new repository is private.
        token: of the hub; the one stored by ``hf auth login`` by default.
        commit_message: the message of the commit.
        license: one of the hub's identifiers, such as "mit".
        images: prompts of images generated with the adapter, by the images' paths.

    Returns:
        The commit's address.

    Raises:
        AdapterFileError: the folder holds no adapter, or a damaged one; nothing is sent.
        ImageError: an image cannot be read; nothing is sent.
        OutputError: the hub refuses the adapter, or cannot be reached.
    """
    folder = Path(folder)
    parts = component_folders(folder)
    files = _adapter_files(folder, parts)
    prompts = {Path(path): prompt for path, prompt in (images or {}).items()}
    sheet = result_file(folder, SHEET)
    files |= _read_images([*prompts, *([sheet] if sheet else [])])
    captions = {path.name: prompt for path, prompt in prompts.items()}
    if len(captions) != len(prompts) or captions.keys() & {SHEET, CARD}:
        raise ImageError(f"Images must have different names; found {', '.join(path.name for path in prompts)}.")
    prefix = f"{subfolder}/" if subfolder else ""
    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not api.file_exists(repository, prefix + CARD, revision=revision):
            files[CARD] = str(_card(folder, repository, parts, license, captions, sheet)).encode()
        operations = [CommitOperationAdd(prefix + name, content) for name, content in files.items()]
        return api.create_commit(repository, operations, commit_message=commit_message, revision=revision).commit_url
    except AdapterFileError:
        raise
    except Exception as error:  # the HTTP library, and so the error, depends on huggingface_hub's version
        raise OutputError(f"The adapter {folder} cannot be published as {repo_id!r}: {error}") from error


def _adapter_files(folder: Path, parts: Mapping[str, Path]) -> dict[str, bytes]:
    """Read and check an adapter's files, without paths of this machine; return them by name in the repository."""
    files: dict[str, bytes] = {}
    for component, part in parts.items():
        read_adapter(part)
        for name in FILES:
            files[f"{component}/{name}".lstrip("/")] = (part / name).read_bytes()
        settings = read_json(part / CONFIG_FILE)
        if model := settings.get("base_model_name_or_path"):
            settings["base_model_name_or_path"] = public_name(model)
        files[f"{component}/{CONFIG_FILE}".lstrip("/")] = json.dumps(settings, indent=2, sort_keys=True).encode()
    encoder = encoder_beside(parts)
    encoder_files = {f"{ENCODER}/{name}": (encoder / name).read_bytes() for name in ENCODER_FILES} if encoder else {}
    for path in encoder.glob("*.safetensors") if encoder else ():
        read_tensors(path)  # checks them
    base = recorded_base(folder)
    public = {name: public_name(path) for name in ("vae", "config") if (path := base.options.get(name))}
    files |= base_files({**base.options, **public}, base.mixed_precision)
    return files | token_files(tokens_beside(parts)) | encoder_files


def _card(
    folder: Path,
    repository: str,
    parts: Mapping[str, Path],
    license: str | None,
    images: Mapping[str, str],
    sheet: Path | None,
) -> ModelCard:
    settings, base = run_settings(folder), base_model(folder)
    metrics, table = result_file(folder, METRICS), result_file(folder, TABLE)
    evaluation = read_json(metrics) if metrics else {}
    return ModelCard(
        name=repository.split("/")[-1],
        repository=repository,
        components=list(parts),
        rank=max(read_adapter(part)[0].r for part in parts.values()),
        base_model=base and public_name(base),
        instance_prompt=settings.get("instance_prompt"),
        license=license,
        images=images,
        sheet=sheet and sheet.name,
        metrics=_numbers(evaluation.get("measures", [])),
        table=table and table.read_text(encoding="utf-8"),
        settings=settings,
        is_control=encoder_beside(parts) is not None,
    )


def _numbers(measures: Any) -> dict[str, float]:
    """Return the adapter's numbers in a metrics.json of ``evaluate``, or of ``evaluate-control`` for a control."""
    if isinstance(measures, dict):
        return {name: modes["controlled"]["value"] for name, modes in measures.items()}
    return {measure["name"]: measure["value"] for measure in measures if measure["mode"] == "adapter"}


def _read_images(paths: Iterable[Path]) -> dict[str, bytes]:
    images: dict[str, bytes] = {}
    for path in paths:
        try:
            images[path.name] = path.read_bytes()
        except OSError as error:
            raise ImageError(f"The image {path} cannot be read: {error.strerror or error}.") from error
    return images
