"""Adapters leave the studio, as a LoRA or as a model, and come in from outside, checked."""

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import hra_diffusion
from hra_diffusion import pipelines
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.folders import ENCODER, ENCODER_FILES, find_encoder
from hra_diffusion.formats.lora import LAYOUTS
from hra_diffusion.formats.peft import FILES
from hra_diffusion.studio.library import Entry, Library
from hra_diffusion.studio.model import Model
from hra_diffusion.studio.requests import AdapterUse

MAX_BYTES = 500_000_000
"""Of an adapter that comes in, unpacked."""
_MAX_MEMBERS = 200


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
    library.free_place(name)
    if not files:
        raise AdapterFileError("Choose a .zip of an adapter's folder, its two files, or a LoRA's .safetensors file.")
    if sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise AdapterFileError(f"The files have more than {MAX_BYTES / 1e6:.0f} MB.")
    with tempfile.TemporaryDirectory(dir=library.folder, prefix=".import-") as temporary:
        place, lost = Path(temporary), 0.0
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
        _check_fits(model, place)
        return library.add(place, name), lost


def _check_fits(model: Model, folder: Path) -> None:
    load = hra_diffusion.load_hra_control if find_encoder(folder) else pipelines.load_hra_weights

    def try_it(pipe: object) -> None:
        load(pipe, folder, "trial")
        pipelines.unload_hra_weights(pipe, "trial")

    model.run(try_it)


def _unpack(archive: Path, place: Path) -> None:
    """Unpack the adapter's files alone, by the names of folder and file; no path of the archive is followed."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [each for each in opened.infolist() if _wanted(Path(each.filename))]
            if not members or len(members) > _MAX_MEMBERS or sum(each.file_size for each in members) > MAX_BYTES:
                raise AdapterFileError(
                    f"{archive.name} holds no adapter, or one that is too large: {', '.join(FILES)}."
                )
            for member in members:
                folder = Path(member.filename).parent.name
                target = place / (folder if folder.isidentifier() else "") / Path(member.filename).name
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    raise AdapterFileError(f"{archive.name} holds several adapters: make a zip of each.")
                with opened.open(member) as source, target.open("wb") as file:
                    file.write(source.read(MAX_BYTES))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise AdapterFileError(f"{archive.name} is no zip that can be read: {error}") from error


def _wanted(path: Path) -> bool:
    return path.name in (ENCODER_FILES if path.parent.name == ENCODER else FILES)


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
