"""Readers end in this project's own errors, whatever a file holds."""

import errno
import json
import os
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError, ImageError, OutputError
from hra_diffusion.formats.files import temporary_folder, tidy, writing
from hra_diffusion.formats.folders import run_settings
from hra_diffusion.formats.images import read_image, read_layers
from hra_diffusion.formats.lora import read_lora
from hra_diffusion.formats.nested import restore
from hra_diffusion.formats.peft import read_adapter
from hra_diffusion.formats.reading import read_json, reading
from hra_diffusion.formats.tensors import read_tensors
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_toml

MODULES = [("unet", "mid.q")]
LORA = {"unet.mid.q.lora_A.weight": torch.ones(2, 4), "unet.mid.q.lora_B.weight": torch.ones(3, 2)}


def safetensors(dtype: str, bits: int) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(bits)


@pytest.mark.parametrize(
    "error", [KeyError("x"), struct.error("x"), RecursionError(), MemoryError(), OverflowError("x"), OSError(5, "I/O")]
)
def test_any_exception_of_a_reader_becomes_one_sentence_with_the_file(error):
    with pytest.raises(AdapterFileError, match=r"a\.bin") as raised, reading(Path("a.bin")):
        raise error
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")
    with pytest.raises(ConfigError, match=r"^as it is$"), reading("a.bin"):
        raise ConfigError("as it is")
    with pytest.raises(KeyboardInterrupt), reading("a.bin"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (save({"a": torch.ones(2, dtype=torch.complex64)}), "complex64"),
        (save({"a": torch.ones(2, dtype=torch.float8_e4m3fn)}), "float8"),
        (save({"a": torch.tensor([1e300], dtype=torch.float64)}), "not finite, in a"),
        (safetensors("F4", 4), "damaged|intact|not used"),
        (safetensors("F8_E8M0", 8), "damaged|intact|not used"),
        (save({"a" * 1001: torch.ones(1)}), "a name of 1,001 characters"),
        (save({str(n): torch.ones(0) for n in range(50_001)}), "50,001 tensors, more than 50,000"),
        (save({"a": torch.ones(1)}, metadata={"a": "x" * 16_000_000}), "header of 16 MB"),
    ],
    ids=["complex", "float8", "1e300", "F4", "F8_E8M0", "long name", "many tensors", "large header"],
)
def test_tensors_that_no_adapter_holds_are_refused(tmp_path, content, reason):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=rf"w\.safetensors .*({reason})"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["fifo", "device", "folder"])
def test_pipes_devices_and_folders_are_refused_and_never_opened(tmp_path, name):
    path = tmp_path / name
    {"fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[name](path)
    found = "a folder" if name == "folder" else "a pipe, socket or device"
    for read in (read_json, read_tensors):
        with pytest.raises(AdapterFileError, match=f"{name}: it is {found}"):
            read(path)
    with pytest.raises(ImageError, match=r"cannot be read: (it is a pipe, socket or device|Is a directory)"):
        read_layers(path)
    (tmp_path / "config.toml").symlink_to(path)
    if name != "folder":
        assert run_settings(tmp_path) == {}  # it is no file


@pytest.mark.parametrize(
    "changes",
    [
        {"unet.mid.q.lora_A.weight": torch.ones(4)},
        {"unet.mid.q.lora_B.weight": torch.ones(3)},
        {"unet.mid.q.lora_B.weight": torch.ones(3, 5)},
        {"unet.mid.q.lora_A.weight": torch.ones(0, 4), "unet.mid.q.lora_B.weight": torch.ones(3, 0)},
        {"unet.mid.q.lora_A.weight": torch.ones(())},
        {"unet.mid.q.alpha": torch.ones(3)},
    ],
    ids=["1-d A", "1-d B", "other rank", "rank 0", "0-d A", "three alphas"],
)
def test_a_lora_with_odd_factors_is_refused_in_one_sentence(tmp_path, changes):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(save(LORA))
    assert read_lora(path, MODULES)["unet", "mid.q"].A.shape == (2, 4)
    path.write_bytes(save(LORA | changes))
    with pytest.raises(AdapterFileError, match=r"lora\.safetensors"):
        read_lora(path, MODULES)


@pytest.mark.parametrize("alpha", ["1" + "0" * 400, "[" * 5000 + "]" * 5000, '"x"', "null", "{}"])
def test_a_lora_with_an_odd_header_is_refused_in_one_sentence(tmp_path, alpha):
    path = tmp_path / "lora.safetensors"
    described = f'{{"unet.lora_alpha": {alpha}, "unet.r": 2}}'
    path.write_bytes(save(LORA, metadata={"lora_adapter_metadata": described}))
    with pytest.raises(AdapterFileError, match=r"lora\.safetensors has a damaged header"):
        read_lora(path, MODULES)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "x" + ".x" * 20_000 + " = 1",
        "[" + "a." * 2000 + "a]\n" + "".join(f"k{n}=1\n" for n in range(9000)),
    ],
    ids=["nested", "one key of 20,000 parts", "many keys below a deep table"],
)
def test_settings_that_take_minutes_to_parse_are_refused_at_once(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(
        AdapterFileError, match=r"config\.toml is not valid TOML: it (is nested too deeply|has .* dots)"
    ):
        run_settings(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.toml is not valid TOML"):
        read_toml(path, DreamBoothConfig())
    assert time.monotonic() - start < 1


def test_a_deeply_nested_state_is_refused():
    described: list = []
    for _ in range(5000):
        described = [described]
    with pytest.raises(AdapterFileError, match="nested too deeply"):
        restore(described, {})


@pytest.mark.parametrize("value", [[], {"a": 1}, "x" * 5000, 10**400, -1, None, True, ["a"] * 20_000, [[]]])
@pytest.mark.parametrize(
    "field", ["r", "target_modules", "modules_to_save", "layers_to_transform", "bias", "peft_type"]
)
def test_any_value_of_an_adapter_s_settings_is_read_or_refused(tmp_path, field, value):
    settings = {"peft_type": "HRA", "r": 2, "target_modules": ["q"], field: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").write_bytes(save({"q.hra_u": torch.ones(4, 2)}))
    message = ""
    try:
        read_adapter(tmp_path)
    except HRAError as error:
        message = str(error)
    assert len(message) < 1000 and "\n" not in message


def test_a_full_disk_that_safetensors_reports_is_an_output_error(tmp_path):
    from safetensors.torch import save_file

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(OutputError, match=r"Cannot write .*m\.safetensors \(.*ulimit -f"),
            writing(tmp_path / "m.safetensors"),
        ):
            save_file({"a": torch.ones(100_000)}, tmp_path / "m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(OutputError, match="No space left"), writing(tmp_path / "m"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_16_bit_gray_is_scaled_exactly_and_with_little_memory(tmp_path):
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "all.png")
    expected = np.rint(levels * (255 / 65535)).astype(np.uint8)
    assert np.array_equal(np.asarray(read_image(tmp_path / "all.png"))[..., 0], expected)
    Image.fromarray(np.zeros((5000, 4000), np.uint16)).save(tmp_path / "large.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_image(tmp_path / "large.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000  # kB; 560,000 with 64-bit numbers


def test_leftovers_of_ended_processes_are_tidied_and_those_of_living_ones_stay(tmp_path):
    with temporary_folder(tmp_path) as own:
        assert [path.name for path in tmp_path.iterdir()] == [own.name]
        living, ended = f".{os.getppid():x}-0123abcd-new-a", f".{2**22 + 1:x}-0123abcd-new-a"
        for name in (living, ended, ended + "b", ".0123abcd-new-a", ".import-xyz_1", ".mine"):
            (tmp_path / name).mkdir()
        tidy(tmp_path, "a")
        assert {path.name for path in tmp_path.iterdir()} == {own.name, living, ended + "b", ".import-xyz_1", ".mine"}
        tidy(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {living, ".mine"}
