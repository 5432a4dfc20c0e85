"""Terminals of other systems: characters and names that they cannot show end no command."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hra_diffusion.cli.main import COMMANDS, main
from hra_diffusion.cli.terminal import spell_unknown_characters

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_help_is_printed_in_every_encoding(encoding):
    command = [sys.executable, "-m", "hra_diffusion.cli.main", "train", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, encoding=encoding, env=environment, cwd=PROJECT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Min-SNR-gamma loss weighting" in done.stdout
    assert "--snr_gamma" in done.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_a_dry_run_is_printed_in_every_encoding(encoding, tiny_sd, images, tmp_path, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    values = {"pretrained_model_name_or_path": tiny_sd, "instance_data_dir": images, "output_dir": tmp_path / "run"}
    flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    assert main(["train", *flags, "--max_train_steps", "1", "--dry_run"]) == 0
    output.flush()
    printed = output.buffer.getvalue().decode(encoding)
    assert " -> " in printed
    assert "×".encode(encoding, "replace").decode(encoding).replace("?", "x") in printed


def test_characters_without_a_spelling_become_escapes(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    spell_unknown_characters()
    print("é γ → 犬 \udcff", file=output, flush=True)
    assert output.buffer.getvalue().decode("cp1252").strip() == r"é gamma -> \u72ac \udcff"


def test_the_error_handler_of_the_system_stays(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdout", output)
    spell_unknown_characters()
    print("\udcff", file=output, flush=True)
    assert output.buffer.getvalue().strip() == b"\xff"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["generate", "--prompt", "a \udcff dog"], "--prompt is 'a \\udcff dog'"),
        (["train", "--output_dir=a\udcff"], "--output_dir is 'a\\udcff'"),
        (["inspect", "a\udcff"], "An argument is 'a\\udcff'"),
        (["inspect", "--a\udcff"], r"--a\udcff is"),
    ],
)
def test_an_argument_that_is_not_utf8_is_refused(arguments, name, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"Error: {name}")
    assert "which is not UTF-8" in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.fixture
def foreign_folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a name that is not valid UTF-8."""
    folder = tmp_path / "\udcff"
    try:
        folder.mkdir()
    except OSError:  # on macOS
        pytest.skip("the file system has UTF-8 names alone")
    monkeypatch.chdir(folder)
    return folder


def test_a_run_in_a_folder_that_is_not_utf8_is_refused_before_anything_is_written(
    foreign_folder, tiny_sd, images, capsys
):
    images.rename(foreign_folder / "photos")
    flags = ["--instance_data_dir", "photos", "--output_dir", "run", "--pretrained_model_name_or_path", str(tiny_sd)]
    assert main(["train", *flags, "--max_train_steps", "1", "--report_to", "none"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: --")
    assert r"\udcff" in error
    assert "which is not UTF-8" in error
    assert [path.name for path in foreign_folder.iterdir()] == ["photos"]


def test_images_whose_names_are_not_utf8_are_trained_and_printed_with_escapes(
    foreign_folder, tiny_sd, tmp_path, monkeypatch
):
    with (foreign_folder / "\udcfe.png").open("wb") as file:
        Image.new("RGB", (40, 40), "red").save(file, "PNG")
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.chdir(tmp_path)
    foreign_folder.rename(tmp_path / "photos")
    flags = ["--instance_data_dir", "photos", "--output_dir", "run", "--pretrained_model_name_or_path", str(tiny_sd)]
    assert main(["train", *flags, "--max_train_steps", "1", "--report_to", "none", "--dry_run"]) == 0
    output.flush()
    assert r"\udcfe.png: 40×40" in output.buffer.getvalue().decode()


COMMAND = f'"{sys.executable}" -m hra_diffusion.cli.main'


def in_shell(script: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a bash script in which $HRA is the command."""
    script = f"set -o pipefail; {script.replace('$HRA', COMMAND)}"
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, cwd=PROJECT, env=settings, timeout=120)


@pytest.mark.parametrize(
    ("script", "code", "error"),
    [
        ("$HRA --help | true", 141, b""),
        ("$HRA --help | head -1", 0, b""),
        ("$HRA --help > /dev/full", 2, b"Error: The output cannot be written: No space left on device.\n"),
        ("$HRA --version > /dev/full", 2, b"Error: The output cannot be written: No space left on device.\n"),
        ("$HRA --help >&-", 0, b""),
        ("$HRA --help <&-", 0, b""),
        ("$HRA --help <&- >&- 2>&-", 0, b""),
        ("$HRA nothing 2> /dev/full", 2, b""),
        ("$HRA nothing 2>&-", 2, b""),
        ("$HRA inspect nowhere 2> /dev/full", 2, b""),
        ("$HRA inspect nowhere <&- >&-", 2, b"Error: There is no adapter in "),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_full_and_broken_streams_end_no_command_in_a_traceback(script, code, error, unbuffered):
    done = in_shell(script, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code or (code == 0 and done.returncode == 141), done
    assert done.stderr.startswith(error) and done.stderr.count(b"\n") == bool(error), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_survives_every_stream(name):
    for script in ("| true", "| head -1", "> /dev/full", ">&-", "<&-", "2>&-", "<&- >&- 2>&-"):
        done = in_shell(f"$HRA {name} --help {script}")
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr
        assert done.returncode in (0, 1, 2, 141)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = in_shell(f"$HRA {name} --help", **plain)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.isascii()


def test_a_description_is_printed_in_a_locale_without_utf8(trained):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = in_shell(f"$HRA inspect {trained}", **plain)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert b"largest angle" in done.stdout and done.stdout.isascii()
    done = in_shell(f"$HRA inspect {trained} | true")
    assert (done.returncode, done.stderr) == (141, b"")
