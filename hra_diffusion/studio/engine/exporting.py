"""Export of adapters as a LoRA or a model, and checked import of adapters."""

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import hra_diffusion
from hra_diffusion import pipelines
from hra_diffusion.dtypes import to_dtype
from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError
from hra_diffusion.formats.adapter_card import CARD
from hra_diffusion.formats.files import is_portable, temporary_folder, write_file, writing
from hra_diffusion.formats.folders import ENCODER, ENCODER_FILES, component_folders, find_encoder
from hra_diffusion.formats.lora import LAYOUTS
from hra_diffusion.formats.peft import CONFIG_FILE, FILES
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.tokens import FOLDER as TOKENS
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.studio.engine.adapters.entry import EXTRA_FILES, THUMBNAILS, Entry, read_entry
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.cache import new_folder
from hra_diffusion.studio.engine.generation.requests import AdapterUse, parse_adapter_uses
from hra_diffusion.studio.engine.models.model_worker import ModelWorker
from hra_diffusion.studio.engine.uploads import DECODING, read_upload

MAX_BYTES = 500_000_000
"""Limit of an imported adapter, unpacked."""
_MAX_MEMBERS, _MAX_TEXT = 200, 1_000_000
"""Limits: files of an archive, and bytes of a text file."""
_MAX_ENTRIES, _MAX_ZIP_END = 10_000, 65_557
"""Limits: all files of an archive, and bytes of its end, which counts them."""
_THUMBNAIL = 640
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save")
_MAX_BLOCKS = 256
"""Limit of an annotator's setting: a larger one could exhaust the memory."""
_COMPONENT = re.compile(r"(unet|transformer|text_encoder)(_\d)?")


def write_lora(worker: ModelWorker, entry: Entry, folder: Path, layout: str, strength: float, dtype: str) -> Path:
    """Write an adapter as a LoRA of its base model: a safetensors file, or a zip of folders for PEFT's layout.

    Raises:
        ConfigError: the strength, layout or dtype is invalid, or no LoRA can hold the adapter.
        BusyError: the queue is full.
    """
    AdapterUse(name=entry.name, strength=strength)  # checks the strength
    to_dtype(dtype)
    _check_no_control(entry)
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}; found {str(layout)[:40]!r}.")
    file = new_folder(folder) / (entry.name if layout == "peft" else f"{entry.name}.safetensors")
    worker.run(
        lambda pipe: pipelines.export_lora(
            entry.folder, file, base=pipe, layout=layout, strength=strength, dtype=dtype
        ),
        worker.bases.find(entry.base),
    )
    return zip_folder(file) if file.is_dir() else file


def write_merged_model(worker: ModelWorker, uses: Sequence[AdapterUse], folder: Path, combine: str, dtype: str) -> Path:
    """Write the adapters' base model with the adapters merged, as a zip of a diffusers folder.

    The base is the one that the first adapter records, if the studio has it, or else the studio's first one.

    Raises:
        ConfigError: combine or dtype is invalid, or an adapter is a control.
        BusyError: the queue is full.
    """
    if combine not in ("mean", "product"):
        raise ConfigError(f"combine must be mean or product; found {str(combine)[:40]!r}.")
    to_dtype(dtype)
    entries = [worker.library.entry(use.name) for use in uses]
    for entry in entries:
        _check_no_control(entry)
    strengths = {entry.folder: use.strength for entry, use in zip(entries, uses, strict=True)}
    base = worker.bases.find(entries[0].base)
    output = new_folder(folder) / f"{base.name}-{'-'.join(use.name for use in uses)}"[:80]
    worker.run(
        lambda _: pipelines.merge_hra(
            strengths,
            output,
            base=base.source,
            base_options=base.options,
            combine=combine,
            dtype=dtype,
        ),
        base,
    )
    return zip_folder(output)


def uses_to_merge(name: str, strength: float, others: list[Any] | None) -> list[AdapterUse]:
    """Return an adapter and, after it, others with their strengths, each once."""
    rest = [use for use in parse_adapter_uses(others or []) if use.name != name]
    return [*parse_adapter_uses([{"name": name, "strength": strength}]), *rest]


def publish(entry: Entry, repository: str, license: str | None, token: str) -> str:
    """Publish an adapter on the Hub and return the commit's URL.

    Raises:
        ConfigError: the repository or the access token is missing.
    """
    if not token or not repository:
        raise ConfigError("Give a repository, USER/NAME, and an access token with write access to it.")
    return pipelines.push_hra_weights(entry.folder, repository, license=license or None, token=token)


def _check_no_control(entry: Entry) -> None:
    if entry.annotator:
        raise ConfigError(f"{entry.name!r} is a control: no LoRA and no merged model can hold its encoder.")


def import_adapter(
    worker: ModelWorker, library: Library, files: Sequence[Path], name: str, base: str | None = None
) -> tuple[Entry, float]:
    """Add an adapter to the library: a zip of its folder, its two files, or a LoRA to be fitted.

    Args:
        worker: loads the base model, which has to fit.
        library: the library.
        files: the uploaded files.
        name: the adapter's name in the library.
        base: the base model of a LoRA or of an adapter that records none; by default the studio's first one.

    Returns:
        The entry, and the lost share of a LoRA, from 0 to 1; 0 for an adapter.

    Raises:
        AdapterFileError: the files are none of these, damaged, too large, or for another model; nothing is added.
        ConfigError: the name is taken or invalid.
    """
    folder_name = library.new_entry_folder(name).name
    if not files:
        raise AdapterFileError("Choose a .zip of an adapter's folder, its two files, or a LoRA's .safetensors file.")
    if sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise AdapterFileError(f"The files have more than {MAX_BYTES / 1e6:.0f} MB.")
    with temporary_folder(library.folder) as temporary:
        folder, lost = temporary / folder_name, 0.0
        folder.mkdir()
        if len(files) == 1 and files[0].suffix.lower() == ".zip":
            _unpack(files[0], folder)
        elif len(files) == 1 and files[0].suffix.lower() == ".safetensors":
            of_base = worker.bases.get(base)
            lost = worker.run(lambda pipe: pipelines.fit_lora(files[0], folder, base=pipe), of_base).lost
        elif {file.name for file in files} - {CARD} == set(FILES):
            for file in (file for file in files if file.name in FILES):
                shutil.copyfile(file, folder / file.name)
        else:
            names = ", ".join(file.name for file in files)[:200]
            raise AdapterFileError(f"Choose a .zip, a .safetensors LoRA, or {' and '.join(FILES)}; found {names}.")
        _check_sizes(folder)
        _check_names(folder)
        _shrink_thumbnails(folder)
        components = _check_fits(worker, folder, base)
        if (folder / CONFIG_FILE).exists():
            (folder / components[0]).mkdir()
            for file in FILES:
                (folder / file).rename(folder / components[0] / file)
        return library.add(folder, name), lost


def _check_sizes(folder: Path) -> None:
    """Refuse large text files and settings, which could exhaust the memory."""
    for path in (*folder.rglob("*.json"), *folder.rglob("*.toml")):
        if path.stat().st_size > _MAX_TEXT:
            raise AdapterFileError(
                f"{path.name} has more than {_MAX_TEXT / 1e6:.0f} MB: no adapter has a text file of this size."
            )
    blocks = read_entry(folder, built_in=False).annotator_settings.get("blocks", 1)
    if not isinstance(blocks, int) or not 1 <= blocks <= _MAX_BLOCKS:
        raise AdapterFileError(
            f"The control has {str(blocks)[:40]} blocks: give a whole number from 1 to {_MAX_BLOCKS}."
        )


def _check_names(folder: Path) -> None:
    """Refuse patterns in place of names: a hostile regular expression can match for years and block every request.

    A text in exclude_modules is a pattern that loading checks and matches in bounded time.
    """
    for part in component_folders(folder).values():
        settings = read_json(part / CONFIG_FILE)
        for field in _PATTERNS:
            names = settings.get(field) or []
            if field == "exclude_modules" and isinstance(names, str):
                continue
            for name in names if isinstance(names, list) else [names]:
                if not re.fullmatch(r"[\w.-]+", str(name)):
                    raise AdapterFileError(
                        f"{CONFIG_FILE} has {field} {str(name)[:80]!r}, which may be a pattern: list modules by name."
                    )


def _shrink_thumbnails(folder: Path) -> None:
    for path in (folder / name for name in THUMBNAILS):
        if path.exists():
            with DECODING:
                image = read_upload(path)
                image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            write_file(path, image.save)


def _check_fits(worker: ModelWorker, folder: Path, base: str | None) -> tuple[str, ...]:
    """Load an adapter into its base, or else the given one, unload it again, and return its components' names."""
    load = hra_diffusion.load_hra_control if find_encoder(folder) else pipelines.load_hra_weights

    def load_and_unload(pipe: Pipeline) -> tuple[str, ...]:
        try:
            load(pipe, folder, "trial")
        except HRAError:
            raise
        except Exception as error:  # any error of the model's code, due to the settings
            raise AdapterFileError(f"The adapter cannot be loaded: {str(error)[:200]}.") from error
        components = pipelines.list_hra_adapters(pipe)["trial"].components
        pipelines.unload_hra_weights(pipe, "trial")
        return components

    return worker.run(load_and_unload, worker.bases.find(read_entry(folder, built_in=False).base or base))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the adapter's files by the names of folder and file, ignoring the paths of the archive."""
    _check_entries(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if _target(PurePosixPath(member.filename))]
            if not members or len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
                raise AdapterFileError(
                    f"{archive.name} holds no adapter ({', '.join(FILES)}), or more than {MAX_BYTES / 1e6:.0f} MB."
                )
            for member in members:
                target = folder / (_target(PurePosixPath(member.filename)) or "")
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise AdapterFileError(f"{archive.name} holds several adapters: make a zip of each.")
                with opened.open(member) as source, target.open("wb") as file:
                    file.write(source.read(MAX_BYTES))
    except HRAError:
        raise
    except Exception as error:  # of zlib, bz2, lzma and zipfile, for damaged archives
        raise AdapterFileError(f"{archive.name} is no readable zip: {str(error)[:200]}.") from error


def _check_entries(archive: Path) -> None:
    """Refuse an archive of too many files before zipfile makes an object of each."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - _MAX_ZIP_END))
        end = file.read()
    record = end[end.rfind(b"PK\5\6") :]
    entries = int.from_bytes(record[10:12], "little")
    if len(record) >= 22 and entries > _MAX_ENTRIES:
        raise AdapterFileError(f"{archive.name} has {entries:,} files or more: make a zip of the adapter alone.")


def _target(path: PurePosixPath) -> Path | None:
    """Return the path of an archive's member in the adapter's folder, or None for other files."""
    folder, name = path.parent.name, path.name
    if folder == ENCODER:
        return Path(ENCODER, name) if name in ENCODER_FILES else None
    if path.parent.parent.name == TOKENS and path.suffix == ".safetensors":
        known = (_COMPONENT.fullmatch(folder) and is_portable(name)) and not name.startswith(".")
        return Path(TOKENS, folder, name) if known else None
    if name in FILES:
        return Path(folder if _COMPONENT.fullmatch(folder) else "", name)
    return Path(name) if name in EXTRA_FILES else None


def zip_folder(folder: Path) -> Path:
    """Replace a folder by an uncompressed zip of the same name.

    Raises:
        OutputError: the disk is full; neither the folder nor the zip is left.
    """
    file = folder.with_name(f"{folder.name}.zip")
    try:
        with writing(file), zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, Path(folder.name) / path.relative_to(folder))
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return file
