"""A short run of benchmarks/faults.py: mutated files, hostile names and random calls end in errors only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_damaged_files_and_random_calls_end_in_an_error_of_the_project():
    flags = ["--mutations", "60", "--calls", "3", "--seed", "1", "--parts", "files", "names", "calls"]
    command = [sys.executable, "-W", "ignore", "benchmarks/faults.py", *flags]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment, check=False)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("|")
    ]
    counts = {row[0]: row[1:] for row in rows[2:]}
    assert len(counts) == 8, done.stderr
    assert {what: other for what, (_, _, _, other, _) in counts.items() if other != "0"} == {}, done.stderr
