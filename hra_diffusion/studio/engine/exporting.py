"""Adapters leave the studio, as a LoRA or as a model, and come in from outside, checked."""

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import hra_diffusion
from hra_diffusion import pipelines
from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError
from hra_diffusion.formats.files import read_json, write_file
from hra_diffusion.formats.folders import ENCODER, ENCODER_FILES, component_folders, find_encoder
from hra_diffusion.formats.lora import LAYOUTS
from hra_diffusion.formats.peft import CONFIG_FILE, FILES
from hra_diffusion.studio.engine.library import KEPT, THUMBNAILS, Entry, Library, read_entry
from hra_diffusion.studio.engine.model_worker import Model
from hra_diffusion.studio.engine.requests import AdapterUse
from hra_diffusion.studio.engine.uploads import read_upload

MAX_BYTES = 500_000_000
"""Of an adapter that comes in, unpacked."""
_MAX_MEMBERS, _MAX_TEXT = 200, 1_000_000
"""Files of an archive, and bytes of one that is text."""
_THUMBNAIL = 640
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save")
_MOST = {"out_channels": 4096, "scale_factor": 64, "blocks": 256}
"""Of a control's encoder and annotator: what is larger could take all memory."""
_COMPONENT = re.compile(r"(unet|transformer|text_encoder)(_\d)?")


def as_lora(model: Model, entry: Entry, folder: Path, layout: str, strength: float, dtype: str) -> Path:
    """Write an adapter as a LoRA: a safetensors file, or for PEFT's layout a zip of folders.

    Raises:
        ConfigError: it cannot be written so.
        BusyError: too many requests wait.
    """
    AdapterUse(name=entry.name, strength=strength)  # checks it
    _check_no_control(entry)
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}; found {str(layout)[:40]!r}.")
    if dtype not in pipelines.DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(pipelines.DTYPES)}; found {str(dtype)[:40]!r}.")
    place = new_folder(folder)
    file = place / (entry.name if layout == "peft" else f"{entry.name}.safetensors")
    model.run(lambda pipe: pipelines.export_lora(entry.folder, file, layout, pipe, strength, dtype))  # pyright: ignore
    return zipped(file) if file.is_dir() else file


def as_model(model: Model, uses: Sequence[AdapterUse], folder: Path, combine: str, dtype: str) -> Path:
    """Write the base model with adapters in its weights, as a zip of a diffusers folder."""
    if dtype not in pipelines.DTYPES or combine not in ("lie", "product"):
        raise ConfigError(f"dtype must be one of {', '.join(pipelines.DTYPES)}, combine lie or product.")
    entries = [model.library.entry(use.name) for use in uses]
    for entry in entries:
        _check_no_control(entry)
    strengths = {entry.folder: use.strength for entry, use in zip(entries, uses, strict=True)}
    output = new_folder(folder) / f"{model.base.name}-{'-'.join(use.name for use in uses)}"[:80]
    model.run(lambda _: pipelines.merge_hra(model.base.source, output, strengths, combine, pipelines.DTYPES[dtype]))  # pyright: ignore
    return zipped(output)


def _check_no_control(entry: Entry) -> None:
    if entry.annotator:
        raise ConfigError(f"{entry.name!r} is a control, whose encoder fits into no LoRA and no plain model.")


def bring_in(model: Model, library: Library, files: Sequence[Path], name: str) -> tuple[Entry, float]:
    """Add an adapter to the library: a zip of its folder, its two files, or a LoRA to be fitted.

    Returns:
        Its entry, and how much of a LoRA was lost: 0 where it is none.

    Raises:
        AdapterFileError: it is none of these, damaged, too large, or for another model; nothing is added.
        ConfigError: the name is taken or cannot be used.
    """
    called = library.free_place(name).name
    if not files:
        raise AdapterFileError("Choose a .zip of an adapter's folder, its two files, or a LoRA's .safetensors file.")
    if sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise AdapterFileError(f"The files have more than {MAX_BYTES / 1e6:.0f} MB.")
    with tempfile.TemporaryDirectory(dir=library.folder, prefix=".import-") as temporary:
        place, lost = Path(temporary) / called, 0.0
        place.mkdir()
        if len(files) == 1 and files[0].suffix.lower() == ".zip":
            _unpack(files[0], place)
        elif len(files) == 1 and files[0].suffix.lower() == ".safetensors":
            lost = model.run(lambda pipe: pipelines.fit_lora(files[0], place, pipe)).lost
        elif sorted(file.name for file in files) == sorted(FILES):
            for file in files:
                shutil.copyfile(file, place / file.name)
        else:
            names = ", ".join(file.name for file in files)[:200]
            raise AdapterFileError(f"Choose a .zip, a .safetensors LoRA, or {' and '.join(FILES)}; found {names}.")
        _check_sizes(place)
        _check_names(place)
        _shrink_thumbnails(place)
        components = _check_fits(model, place)
        if (place / CONFIG_FILE).exists():
            (place / components[0]).mkdir()
            for file in FILES:
                (place / file).rename(place / components[0] / file)
        return library.add(place, name), lost


def _check_sizes(folder: Path) -> None:
    """Refuse what would take more memory, once it is read, than an adapter does."""
    for path in (*folder.rglob("*.json"), *folder.rglob("*.toml")):
        if path.stat().st_size > _MAX_TEXT:
            raise AdapterFileError(f"{path.name} has more than {_MAX_TEXT / 1e6:.0f} MB, which no adapter's has.")
    entry, encoder = read_entry(folder, built_in=False), find_encoder(folder)
    numbers = {**entry.annotator_settings, **(read_json(encoder / ENCODER_FILES[0]) if encoder else {})}
    for name, most in _MOST.items():
        if not isinstance(number := numbers.get(name, 1), int) or not 1 <= number <= most:
            raise AdapterFileError(f"The control has {name} {str(number)[:40]}: give a whole number from 1 to {most}.")


def _check_names(folder: Path) -> None:
    """Refuse patterns in place of names: matching a regular expression can take years, and holds up everything."""
    for part in component_folders(folder).values():
        settings = read_json(part / CONFIG_FILE)
        for field in _PATTERNS:
            said = settings.get(field) or []
            for name in said if isinstance(said, list) else [said]:
                if not re.fullmatch(r"[\w.-]+", str(name)):
                    raise AdapterFileError(
                        f"{CONFIG_FILE} has {field} {str(name)[:80]!r}, which may be a pattern: list modules by name."
                    )


def _shrink_thumbnails(folder: Path) -> None:
    for path in (folder / name for name in THUMBNAILS):
        if path.exists():
            image = read_upload(path)
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            write_file(path, image.save)


def _check_fits(model: Model, folder: Path) -> tuple[str, ...]:
    """Load an adapter and take it out again; returns the components that it is for."""
    load = hra_diffusion.load_hra_control if find_encoder(folder) else pipelines.load_hra_weights

    def try_it(pipe: object) -> tuple[str, ...]:
        try:
            load(pipe, folder, "trial")
        except HRAError:
            raise
        except Exception as error:  # whatever its settings made of the model's code
            raise AdapterFileError(f"It cannot be loaded: {str(error)[:200]}.") from error
        components = pipelines.list_hra_adapters(pipe)["trial"].components
        pipelines.unload_hra_weights(pipe, "trial")
        return components

    return model.run(try_it)


def _unpack(archive: Path, place: Path) -> None:
    """Unpack the adapter's files alone, by the names of folder and file; no path of the archive is followed."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [each for each in opened.infolist() if _belongs(PurePosixPath(each.filename))]
            if not members or len(members) > _MAX_MEMBERS or sum(each.file_size for each in members) > MAX_BYTES:
                raise AdapterFileError(
                    f"{archive.name} holds no adapter, or one that is too large: {', '.join(FILES)}."
                )
            for member in members:
                target = place / (_belongs(PurePosixPath(member.filename)) or "")
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    raise AdapterFileError(f"{archive.name} holds several adapters: make a zip of each.")
                with opened.open(member) as source, target.open("wb") as file:
                    file.write(source.read(MAX_BYTES))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise AdapterFileError(f"{archive.name} is no zip that can be read: {error}") from error


def _belongs(path: PurePosixPath) -> Path | None:
    """Where in an adapter's folder a member of an archive belongs, if anywhere: files of no component lie in it."""
    folder, name = path.parent.name, path.name
    if folder == ENCODER:
        return Path(ENCODER, name) if name in ENCODER_FILES else None
    if name in FILES:
        return Path(folder if _COMPONENT.fullmatch(folder) else "", name)
    return Path(name) if name in KEPT else None


def new_folder(folder: Path) -> Path:
    """Make a folder of its own in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder))


def zipped(folder: Path) -> Path:
    """Pack a folder beside itself, not compressed, and remove it."""
    file = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, Path(folder.name) / path.relative_to(folder))
    shutil.rmtree(folder)
    return file
