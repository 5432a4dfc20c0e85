"""Terminals of other systems: characters and names that they cannot show end no command."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hra_diffusion.cli.main import main
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
