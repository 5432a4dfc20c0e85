"""The benchmark for a GPU runs every part at tiny sizes on the CPU, and says when there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]


def run(*flags):
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu.py", *flags]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_named_with_the_flag_for_it():
    process = run()
    assert process.returncode == 1
    assert "sees no GPU" in process.stderr
    assert "--smoke" in process.stderr


@pytest.mark.slow
def test_every_part_runs_at_tiny_sizes_and_is_written(tmp_path):
    process = run("--smoke", "--output", str(tmp_path / "gpu.md"))
    assert process.returncode == 0, process.stderr
    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert text.strip() == process.stdout.strip()
    for part in ("kernels", "eager", "CUDA graph", "compiled", "memory of", "PEFT HRA", "PEFT OFT", "PEFT LoRA"):
        assert part in text
    assert "Error" not in text
    assert "Left out, for want of time: nothing." in text


@pytest.mark.slow
def test_cases_that_do_not_fit_are_listed():
    process = run("--smoke", "--minutes", "0")
    assert process.returncode == 0
    assert "Left out, for want of time: kernels, smoke, float32; unet-smoke" in process.stdout
