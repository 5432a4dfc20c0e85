import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_benchmark_runs_and_prints_its_tables():
    command = [sys.executable, "benchmarks/core.py", "--smoke", "--rounds", "1", "--rank", "4"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT, env=environment)
    assert run.returncode == 0, run.stderr
    for title in ("unet-smoke", "decoder-smoke", "growth", "operations"):
        assert f"### {title}" in run.stdout
    assert "nan" not in run.stdout
